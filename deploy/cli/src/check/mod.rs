//! `culvert check`: files or a cluster in, findings out. What is found is decided by crate `culvert-check`; here are reading,
//! printing and the exit code.

use clap::{Args, ValueEnum};
use culvert_check::cluster::{self, ClusterFacts, Stage};
use culvert_check::{Absent, File, Report, render};
use culvert_objects::encoding::{self, NotText};
use culvert_objects::{Kind, manifest};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use thiserror::Error;

use crate::cli::output::{Format, print};
use crate::live::{ClusterArgs, gather};

/// Largest file that is read, in bytes: more is no manifest.
const LARGEST: u64 = 16 << 20;
/// Exit code for files that could not be read, as for a command line that is not understood.
const UNREADABLE: u8 = 2;

/// Say what is wrong or surprising in a cluster, or in manifests before they are applied. Each finding has a code
/// (docs/check.md).
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Look at manifests instead of the cluster: files, directories, or - for standard input; looked at together.
    #[arg(short, long = "file", value_name = "FILE|DIR", num_args = 1..,
        conflicts_with_all = ["pre", "kubeconfig", "context"])]
    file: Vec<PathBuf>,
    /// What an object that is referred to and not in the files is taken for.
    #[arg(long, value_enum, default_value_t, requires = "file")]
    absent: AbsentArg,
    /// Whether Culvert can be installed in the cluster, rather than how it is.
    #[arg(long)]
    pre: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum AbsentArg {
    /// Missing, if the files create its namespace; else it may be in the cluster.
    #[default]
    Judged,
    /// The files are all there is.
    Missing,
    /// The cluster has it.
    There,
}

/// Why a file was not looked at.
#[derive(Debug, Error)]
enum FileError {
    #[error("{path}: {error}")]
    Io { path: String, error: std::io::Error },
    #[error("{path}: {error}")]
    NotText { path: String, error: NotText },
    #[error("{path}: is larger than {LARGEST} bytes, so it is no manifest")]
    TooLarge { path: String },
    #[error("{path}: has no *.yaml, *.yml or *.json")]
    NoManifests { path: String },
}

/// Looks at the files or the cluster and prints what it finds. Exit code: 0 no errors, 1 errors, 2 a file or the cluster could not
/// be read (what could be is looked at nevertheless).
///
/// # Errors
/// When standard output cannot be written.
pub fn run(arguments: &CheckArgs) -> anyhow::Result<ExitCode> {
    if arguments.file.is_empty() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(Box::pin(run_on_cluster(arguments)));
    }
    let (files, unreadable) = read(&arguments.file);
    for error in &unreadable {
        eprintln!("error: {error}");
    }
    let absent = match arguments.absent {
        AbsentArg::Judged => Absent::Judged,
        AbsentArg::Missing => Absent::Missing,
        AbsentArg::There => Absent::There,
    };
    let report = culvert_check::check(&files, absent);
    print(arguments.output, &render::text(&report), &serde_json::to_value(&report)?)?;
    Ok(exit_code(&report, unreadable.is_empty()))
}

/// The kinds that findings are made from.
const KINDS: [Kind; 3] = [Kind::Namespace, Kind::Node, Kind::Pod];

async fn run_on_cluster(arguments: &CheckArgs) -> anyhow::Result<ExitCode> {
    let stage = if arguments.pre { Stage::BeforeInstall } else { Stage::Installed };
    let facts = match read_cluster(&arguments.cluster, stage).await {
        Ok(facts) => facts,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(ExitCode::from(UNREADABLE));
        }
    };
    let report = cluster::check(&facts);
    print(arguments.output, &cluster::text(&report), &serde_json::to_value(&report)?)?;
    Ok(if report.errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn read_cluster(arguments: &ClusterArgs, stage: Stage) -> anyhow::Result<ClusterFacts> {
    let cluster = arguments.connect().await?;
    Box::pin(gather::facts(&cluster, stage, &KINDS)).await
}

fn exit_code(report: &Report, is_whole: bool) -> ExitCode {
    match (is_whole, report.errors) {
        (false, _) => ExitCode::from(UNREADABLE),
        (true, 0) => ExitCode::SUCCESS,
        (true, _) => ExitCode::FAILURE,
    }
}

/// What could be read, and why the rest could not.
fn read(paths: &[PathBuf]) -> (Vec<File>, Vec<FileError>) {
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    for path in paths {
        if path == Path::new("-") {
            let name = PathBuf::from("standard input");
            take(&name, std::io::stdin(), &mut files, &mut errors);
            continue;
        }
        let io = |error| FileError::Io { path: path.display().to_string(), error };
        let found = match path.is_dir() {
            true => match manifest::files_below(path) {
                Ok(found) if found.is_empty() => {
                    errors.push(FileError::NoManifests { path: path.display().to_string() });
                    continue;
                }
                Ok(found) => found,
                Err(error) => {
                    errors.push(io(error));
                    continue;
                }
            },
            false => vec![path.clone()],
        };
        for path in found {
            match std::fs::File::open(&path) {
                Ok(file) => take(&path, file, &mut files, &mut errors),
                Err(error) => errors.push(FileError::Io { path: path.display().to_string(), error }),
            }
        }
    }
    (files, errors)
}

fn take(path: &Path, source: impl Read, files: &mut Vec<File>, errors: &mut Vec<FileError>) {
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    match source.take(LARGEST + 1).read_to_end(&mut bytes) {
        Err(error) => return errors.push(FileError::Io { path: name, error }),
        Ok(_) if bytes.len() as u64 > LARGEST => return errors.push(FileError::TooLarge { path: name }),
        Ok(_) => {}
    }
    match encoding::text(bytes) {
        Ok(text) => files.push(File { path: path.to_owned(), text }),
        Err(error) => errors.push(FileError::NotText { path: name, error }),
    }
}
