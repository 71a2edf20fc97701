//! `culvert capture`: record the frames of an interface, or answer questions about a recording.

use super::pcap;
use super::{Sniffer, Summary};
use anyhow::Context;
use clap::Args;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

/// Record frames of an interface of this network namespace as pcap, or look into a recording.
#[derive(Args, Debug)]
pub struct CaptureArgs {
    /// Interface to record; `eth0` on a node is the link between the nodes.
    #[arg(long, value_name = "NAME", required_unless_present = "read", requires = "write")]
    interface: Option<String>,
    /// File to record into.
    #[arg(long, value_name = "FILE", conflicts_with = "read")]
    write: Option<PathBuf>,
    /// Stop after so many seconds; without it, when standard input closes.
    #[arg(long)]
    seconds: Option<f64>,
    /// Recording to look into; prints connections, whether each is TLS 1.3, and where the token can be read.
    #[arg(long, value_name = "FILE")]
    read: Option<PathBuf>,
    /// Word to look for.
    #[arg(long, default_value = "", requires = "read")]
    token: String,
}

/// Runs the command; JSON lines on standard output: `{"event":"capturing"}` once frames are being kept, and
/// `{"event":"captured","frames":N}` at the end.
///
/// # Errors
/// When the interface cannot be opened or the file not written or read.
pub fn run(args: &CaptureArgs) -> anyhow::Result<()> {
    if let Some(path) = &args.read {
        let frames = pcap::read(path).with_context(|| path.display().to_string())?;
        println!("{}", serde_json::to_string_pretty(&Summary::of(&frames, &args.token))?);
        return Ok(());
    }
    let (Some(interface), Some(path)) = (&args.interface, &args.write) else {
        anyhow::bail!("--interface and --write, or --read");
    };
    let mut sniffer = Sniffer::open(interface).with_context(|| format!("capture on {interface}"))?;
    let file = File::create(path).with_context(|| path.display().to_string())?;
    let stop = stop_flag(args.seconds);
    println!("{}", serde_json::json!({"event": "capturing", "interface": interface}));
    std::io::stdout().flush()?;
    let frames = record(&mut sniffer, file, &stop)?;
    println!("{}", serde_json::json!({"event": "captured", "frames": frames}));
    Ok(())
}

/// Set when it is time to stop.
fn stop_flag(seconds: Option<f64>) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    std::thread::spawn(move || {
        match seconds {
            Some(seconds) => std::thread::sleep(Duration::from_secs_f64(seconds.max(0.0))),
            None => {
                // Whatever is typed does not matter; an error ends it as well.
                let _ = std::io::copy(&mut std::io::stdin().lock().by_ref(), &mut std::io::sink());
            }
        }
        flag.store(true, Ordering::Relaxed);
    });
    stop
}

fn record(sniffer: &mut Sniffer, file: File, stop: &AtomicBool) -> std::io::Result<u64> {
    /// Frames on their way when the word to stop came are still taken, for so long.
    const LINGER: Duration = Duration::from_millis(100);
    const TICK: Duration = Duration::from_millis(20);
    let mut out = BufWriter::new(file);
    pcap::write_header(&mut out)?;
    let mut frames = 0;
    let mut stopped_at: Option<Instant> = None;
    loop {
        if stop.load(Ordering::Relaxed) {
            let since = *stopped_at.get_or_insert_with(Instant::now);
            if since.elapsed() > LINGER {
                break;
            }
        }
        if let Some(frame) = sniffer.next(TICK)? {
            pcap::write_frame(&mut out, SystemTime::now(), frame)?;
            frames += 1;
        }
    }
    out.flush()?;
    Ok(frames)
}
