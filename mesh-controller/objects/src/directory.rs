//! The directory source: manifests below a directory, followed as they change. One bad file is reported and skipped;
//! its last good version stays.

mod news;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use crate::manifest::{self, Manifest, ManifestError, Skipped};
use crate::object::{Object, ObjectKey};
use crate::objects::Objects;
use news::{Look, News};

/// Everything is looked at this often, whatever the kernel's notifications said.
const RESCAN: Duration = Duration::from_secs(30);
/// The same where there are no notifications.
const RESCAN_UNTOLD: Duration = Duration::from_secs(5);

/// A directory that is being followed, until it is dropped.
pub struct Directory {
    objects: watch::Receiver<Arc<Objects>>,
    task: JoinHandle<()>,
}

impl Directory {
    /// Reads the directory and starts to follow it.
    ///
    /// # Errors
    /// When it cannot be listed.
    pub async fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        // Watched before it is read, so that no change falls between.
        let news = News::of(&path);
        let mut files = Files::new(path);
        let (mut files, objects) = tokio::task::spawn_blocking(move || {
            files.read_again(&Look::Everywhere)?;
            let objects = files.publish();
            Ok::<_, io::Error>((files, objects))
        })
        .await
        .map_err(io::Error::other)??;
        files.report();
        let (publisher, objects) = watch::channel(Arc::new(objects));
        let task = tokio::spawn(follow(files, news, publisher));
        Ok(Self { objects, task })
    }

    /// The objects, now and as they change.
    pub fn objects(&self) -> watch::Receiver<Arc<Objects>> {
        self.objects.clone()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Signals that something in a directory changed, for as long as the watcher is held. One pending signal is enough: what
/// changed is found by looking.
///
/// # Errors
/// When the directory is not there, or the kernel has no watch to give.
pub fn watch_directory(path: &Path, changed: mpsc::Sender<()>) -> notify::Result<notify::RecommendedWatcher> {
    let on_event = move |event: notify::Result<notify::Event>| {
        if !matches!(event, Ok(notify::Event { kind: notify::EventKind::Access(_), .. })) {
            let _ = changed.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(on_event)?;
    watcher.watch(path, RecursiveMode::Recursive)?;
    Ok(watcher)
}

async fn follow(mut files: Files, news: News, publisher: watch::Sender<Arc<Objects>>) {
    let every = if news.is_told() { RESCAN } else { RESCAN_UNTOLD };
    let mut rescan = tokio::time::interval_at(Instant::now() + every, every);
    rescan.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let look = tokio::select! {
            look = news.next() => look,
            _ = rescan.tick() => Look::Everywhere,
            () = publisher.closed() => return,
        };
        let scanned = tokio::task::spawn_blocking(move || {
            let changed = files.read_again(&look);
            let objects = matches!(changed, Ok(true)).then(|| files.publish());
            (files, changed, objects)
        });
        // Only a panic or the runtime's end stops the task.
        let Ok((back, changed, objects)) = scanned.await else { return };
        files = back;
        if let Err(error) = changed {
            tracing::warn!(%error, directory = %files.directory.display(), "cannot list the objects; keeping what was read");
        }
        if let Some(objects) = objects {
            publisher.send_replace(Arc::new(objects));
            files.report();
        }
    }
}

/// Tells whether a file is still the one that was read.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    modified: (i64, i64),
    changed: (i64, i64),
    length: u64,
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let at = std::fs::metadata(path)?;
        Ok(Self {
            inode: (at.dev(), at.ino()),
            modified: (at.mtime(), at.mtime_nsec()),
            changed: (at.ctime(), at.ctime_nsec()),
            length: at.len(),
        })
    }
}

struct File {
    stamp: Stamp,
    /// Of the last good version.
    objects: Vec<Arc<Object>>,
    errors: Vec<ManifestError>,
    skipped: Vec<Skipped>,
}

/// What was read from each file, and the objects that came of it.
struct Files {
    directory: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// Which files define an object; the last in path order counts.
    definitions: BTreeMap<ObjectKey, BTreeSet<PathBuf>>,
    objects: Objects,
    /// Lines already logged, so that a lasting fault is reported once.
    reported: BTreeSet<String>,
}

impl Files {
    fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            files: BTreeMap::new(),
            definitions: BTreeMap::new(),
            objects: Objects::default(),
            reported: BTreeSet::new(),
        }
    }

    /// Reads what changed; whether anything did.
    fn read_again(&mut self, look: &Look) -> io::Result<bool> {
        match look {
            Look::At(paths) if paths.iter().all(|path| self.is_beside_others(path)) => {
                Ok(self.read_changed(paths))
            }
            Look::At(_) | Look::Everywhere => {
                let found = manifest::files_below(&self.directory)?.into_iter().collect();
                let is_gone = |path: &&PathBuf| !BTreeSet::contains(&found, *path);
                let gone: Vec<PathBuf> = self.files.keys().filter(is_gone).cloned().collect();
                gone.iter().for_each(|path| self.replace(path, None));
                Ok(self.read_changed(&found) || !gone.is_empty())
            }
        }
    }

    /// Whether a path is that of a file in a directory which is read under this name: not in a hidden one, and not in one that was
    /// reached by a link before.
    fn is_beside_others(&self, path: &Path) -> bool {
        let Some(directory) = path.parent() else { return false };
        let first = self.files.range(directory.to_owned()..).next();
        first.is_some_and(|(known, _)| known.starts_with(directory)) && !path.is_dir()
    }

    fn read_changed(&mut self, paths: &BTreeSet<PathBuf>) -> bool {
        let mut changed = false;
        for path in paths {
            // A file that vanished meanwhile is found gone next time.
            let Ok(stamp) = Stamp::of(path) else { continue };
            if self.files.get(path).is_some_and(|file| file.stamp == stamp) {
                continue;
            }
            let file = self.read(path, stamp);
            self.replace(path, Some(file));
            changed = true;
        }
        changed
    }

    fn read(&self, path: &Path, stamp: Stamp) -> File {
        let Manifest { objects, skipped, errors } = manifest::load(path);
        let last = self.files.get(path).map(|last| last.objects.as_slice()).unwrap_or_default();
        let objects = if errors.is_empty() {
            let known: BTreeMap<ObjectKey, &Arc<Object>> = last.iter().map(|at| (at.key(), at)).collect();
            // What has not changed stays the very same object, so that what was made of it can be kept.
            let same = |object: Object| match known.get(&object.key()) {
                Some(before) if ***before == object => (*before).clone(),
                _ => Arc::new(object),
            };
            objects.into_iter().map(|at| same(at.object)).collect()
        } else {
            last.to_vec()
        };
        File { stamp, objects, errors, skipped }
    }

    fn replace(&mut self, path: &Path, file: Option<File>) {
        let mut touched = BTreeSet::new();
        let before = match &file {
            None => self.files.remove(path),
            Some(_) => self.files.get_mut(path).map(|file| File {
                objects: std::mem::take(&mut file.objects),
                errors: Vec::new(),
                skipped: Vec::new(),
                stamp: file.stamp,
            }),
        };
        for key in before.iter().flat_map(|file| &file.objects).map(|object| object.key()) {
            if let Some(paths) = self.definitions.get_mut(&key) {
                paths.remove(path);
            }
            touched.insert(key);
        }
        if let Some(file) = file {
            for key in file.objects.iter().map(|object| object.key()) {
                self.definitions.entry(key.clone()).or_default().insert(path.to_owned());
                touched.insert(key);
            }
            self.files.insert(path.to_owned(), file);
        }
        for key in touched {
            self.settle(&key);
        }
    }

    /// Puts the definition that counts in force.
    fn settle(&mut self, key: &ObjectKey) {
        let counts = self.definitions.get(key).and_then(|paths| paths.last());
        let file = counts.and_then(|path| self.files.get(path));
        match file.and_then(|file| file.objects.iter().rfind(|object| object.key() == *key)) {
            Some(object) => self.objects.insert(object.clone()),
            None => {
                self.definitions.remove(key);
                self.objects.remove(key);
            }
        }
    }

    fn publish(&self) -> Objects {
        let mut problems: Vec<ManifestError> =
            self.files.values().flat_map(|file| file.errors.clone()).collect();
        for (key, paths) in self.definitions.iter().filter(|(_, paths)| paths.len() > 1) {
            let others = paths.iter().rev().skip(1).map(|path| path.display().to_string());
            problems.push(ManifestError {
                file: paths.last().cloned().unwrap_or_default(),
                document: 0,
                object: Some(key.clone()),
                field: String::new(),
                message: format!(
                    "is defined again in {}; this definition counts",
                    others.collect::<Vec<_>>().join(", ")
                ),
            });
        }
        self.objects.clone().with_problems(problems)
    }

    /// Logs what is new among the faults and skipped documents.
    fn report(&mut self) {
        let faults = self.publish().problems().iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let skipped: BTreeSet<String> =
            self.files.values().flat_map(|file| &file.skipped).map(ToString::to_string).collect();
        for line in faults.difference(&self.reported) {
            tracing::warn!("{line}");
        }
        for line in skipped.difference(&self.reported) {
            tracing::info!("{line}");
        }
        self.reported = faults.into_iter().chain(skipped).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::Kind;

    fn write(directory: &Path, name: &str, text: &str) {
        let hidden = directory.join(format!(".{name}"));
        std::fs::write(&hidden, text).unwrap();
        std::fs::rename(&hidden, directory.join(name)).unwrap();
    }

    fn node(name: &str, zone: &str) -> String {
        format!("apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, labels: {{zone: {zone:?}}}}}\n---\n")
    }

    async fn wait(objects: &mut watch::Receiver<Arc<Objects>>, holds: impl Fn(&Objects) -> bool) {
        let found = tokio::time::timeout(Duration::from_secs(10), objects.wait_for(|objects| holds(objects)));
        assert!(found.await.is_ok(), "{:?}", objects.borrow());
    }

    fn zone(objects: &Objects, name: &str) -> Option<String> {
        objects.find(Kind::Node, "", name)?.label("zone").map(str::to_owned)
    }

    #[tokio::test]
    async fn changes_are_followed_and_a_bad_file_keeps_its_last_good_version() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        write(at, "a.yaml", &(node("one", "a") + &node("two", "a")));
        write(at, "bad.yaml", "kind: Node\n");
        let source = Directory::open(at).await.unwrap();
        let mut objects = source.objects();
        assert_eq!((objects.borrow().len(), objects.borrow().problems().len()), (2, 1));
        let untouched = objects.borrow().find(Kind::Node, "", "two").unwrap().clone();

        std::fs::create_dir(at.join("sub")).unwrap();
        write(&at.join("sub"), "c.yaml", &node("three", "c"));
        wait(&mut objects, |objects| objects.len() == 3).await;
        assert!(Arc::ptr_eq(&untouched, objects.borrow().find(Kind::Node, "", "two").unwrap()));

        write(at, "a.yaml", &(node("one", "b") + &node("TWO", "b")));
        wait(&mut objects, |objects| objects.problems().len() == 2).await;
        assert_eq!(zone(&objects.borrow(), "one").as_deref(), Some("a"));

        write(at, "a.yaml", &(node("one", "b") + &node("two", "a")));
        wait(&mut objects, |objects| objects.problems().len() == 1).await;
        assert!(Arc::ptr_eq(&untouched, objects.borrow().find(Kind::Node, "", "two").unwrap()));
        write(at, "a.yaml", &node("one", "b"));
        wait(&mut objects, |objects| objects.len() == 2).await;
        assert_eq!(zone(&objects.borrow(), "one").as_deref(), Some("b"));
        assert_eq!(objects.borrow().len(), 2);

        std::fs::remove_file(at.join("a.yaml")).unwrap();
        wait(&mut objects, |objects| objects.len() == 1).await;
    }

    #[tokio::test]
    async fn a_file_renamed_to_where_nobody_reads_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        ["real", ".hidden"].iter().for_each(|name| std::fs::create_dir(at.join(name)).unwrap());
        // Read under the name that comes first.
        std::os::unix::fs::symlink("real", at.join("link")).unwrap();
        write(&at.join("real"), "a.yaml", &node("one", "a"));
        let source = Directory::open(at).await.unwrap();
        let mut objects = source.objects();
        write(&at.join(".hidden"), "b.yaml", &node("hidden", "a"));
        write(&at.join("real"), "a.yaml", &node("one", "b"));
        wait(&mut objects, |objects| zone(objects, "one").as_deref() == Some("b")).await;
        assert_eq!(
            (objects.borrow().len(), objects.borrow().problems().len()),
            (1, 0),
            "{:?}",
            objects.borrow()
        );
        write(&at.join(".hidden"), "b.yaml", &node("hidden", "b"));
        write(at, "c.yaml", &node("two", "a"));
        wait(&mut objects, |objects| objects.len() > 1).await;
        assert_eq!((zone(&objects.borrow(), "hidden"), objects.borrow().problems().len()), (None, 0));
    }

    #[tokio::test]
    async fn of_two_definitions_the_last_file_counts() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        write(at, "a.yaml", &node("one", "a"));
        write(at, "b.yaml", &node("one", "b"));
        let source = Directory::open(at).await.unwrap();
        let mut objects = source.objects();
        assert_eq!(zone(&objects.borrow(), "one").as_deref(), Some("b"));
        assert!(objects.borrow().problems()[0].to_string().contains("a.yaml"));
        std::fs::remove_file(at.join("b.yaml")).unwrap();
        wait(&mut objects, |objects| zone(objects, "one").as_deref() == Some("a")).await;
        assert!(objects.borrow().problems().is_empty());
    }
}
