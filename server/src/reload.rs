//! Files that are read again while the node runs: API keys, secrets, keys of tokens, certificates. A change is in use
//! at the next look, without a restart; a file that becomes unreadable or wrong changes nothing.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};
use tracing::{error, info};

use crate::seldom::Seldom;
use crate::textfile;
use crate::vital::Vital;

/// Most bytes of such a file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// All files of a node that are read again. Cheap to clone.
#[derive(Clone)]
pub struct Reload {
    outside: Handle,
    interval: Duration,
    watched: Arc<Mutex<Vec<Weak<Mutex<Watched>>>>>,
}

/// The value of the moment, made from files. Cheap to clone.
#[derive(Debug)]
pub struct Current<T>(Arc<RwLock<Arc<T>>>);

/// A value made from files, and the way to make it from others.
pub struct Followed<T> {
    current: Current<T>,
    watched: Arc<Mutex<Watched>>,
}

/// What a look at files has found.
#[derive(Debug)]
pub enum Look {
    /// What was there before.
    Same,
    /// Something new, which is in use.
    New,
    /// Nothing that can be used. The old value stays.
    Bad(anyhow::Error),
}

/// Some files, and what is made of them.
struct Watched {
    name: &'static str,
    counter: &'static str,
    files: Vec<PathBuf>,
    take: Take,
    seen: Option<Vec<[u8; 32]>>,
    failures: Seldom,
}

/// Makes a value of the content of files, in their order.
pub type Parse<T> = Box<dyn FnMut(&[Vec<u8>]) -> anyhow::Result<T> + Send>;

/// As [`Parse`], and puts the value in its place.
type Take = Box<dyn FnMut(&[Vec<u8>]) -> anyhow::Result<()> + Send>;

// === impl Reload ===

impl Reload {
    /// Looks at files that often, on that runtime.
    pub fn new(interval: Duration, outside: &Handle) -> Self {
        Self {
            outside: outside.clone(),
            interval,
            watched: Arc::default(),
        }
    }

    /// Reads files, makes a value of their content, and does so again whenever it changes. `name` is the setting, for
    /// the log. Without files the value is made once.
    ///
    /// # Errors
    ///
    /// Those of the first time.
    pub fn follow<T: Send + Sync + 'static>(
        &self,
        name: &'static str,
        files: Vec<PathBuf>,
        parse: impl FnMut(&[Vec<u8>]) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<Followed<T>> {
        let counter = "unisono_file_reloads_total";
        self.follow_counted(name, counter, self.interval, files, parse)
    }

    /// As [`Reload::follow`], with a counter of its own and another interval.
    pub fn follow_counted<T: Send + Sync + 'static>(
        &self,
        name: &'static str,
        counter: &'static str,
        interval: Duration,
        files: Vec<PathBuf>,
        mut parse: impl FnMut(&[Vec<u8>]) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<Followed<T>> {
        let contents = read_all(&files)?;
        let current = Current::new(parse(&contents)?);
        let watched = Arc::new(Mutex::new(Watched {
            name,
            counter,
            files,
            take: current.take(parse),
            seen: Some(digests(&contents)),
            failures: Seldom::default(),
        }));
        let mut all = lock(&self.watched);
        all.retain(|watched| watched.strong_count() > 0);
        all.push(Arc::downgrade(&watched));
        self.outside
            .spawn(watch(Arc::downgrade(&watched), interval));
        Ok(Followed { current, watched })
    }

    /// Looks at all files now, and says what it found at each setting that has some.
    pub async fn look(&self) -> Vec<(&'static str, Look)> {
        let all: Vec<_> = lock(&self.watched)
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let look = move || {
            let of = |watched: &Arc<Mutex<Watched>>| {
                let mut watched = lock(watched);
                (!watched.files.is_empty()).then(|| (watched.name, watched.look()))
            };
            all.iter().filter_map(of).collect()
        };
        let looked = self.outside.spawn_blocking(look).await;
        looked.unwrap_or_default()
    }
}

/// Looks again and again, for as long as somebody uses the value.
async fn watch(watched: Weak<Mutex<Watched>>, interval: Duration) {
    let _vital = Vital("reload");
    loop {
        sleep(interval).await;
        let Some(watched) = watched.upgrade() else {
            return;
        };
        // A file system that hangs must not hold up what else runs here.
        let looked = tokio::task::spawn_blocking(move || drop(lock(&watched).look()));
        let _ = looked.await;
    }
}

impl Watched {
    fn look(&mut self) -> Look {
        let looked = self.look_once();
        let outcome = match &looked {
            Look::Same => return looked,
            Look::New => {
                info!(setting = self.name, "new content is in use");
                "ok"
            }
            Look::Bad(error) => {
                if let Some(times) = self.failures.add(Instant::now(), 1) {
                    let error = format!("{error:#}");
                    error!(setting = self.name, %error, times, "what is there now is of no use; the old content stays");
                }
                "failed"
            }
        };
        metrics::counter!(self.counter, "outcome" => outcome).increment(1);
        looked
    }

    fn look_once(&mut self) -> Look {
        // A pipe, as the `<(...)` of a shell, can be read once only.
        if !self.files.iter().all(|file| can_be_read_again(file)) {
            return Look::Same;
        }
        let contents = match read_all(&self.files) {
            Ok(contents) => contents,
            Err(error) => return Look::Bad(error),
        };
        let digests = digests(&contents);
        if self.seen.as_ref() == Some(&digests) {
            return Look::Same;
        }
        match (self.take)(&contents) {
            Ok(()) => {
                self.seen = Some(digests);
                Look::New
            }
            Err(error) => Look::Bad(error),
        }
    }
}

fn can_be_read_again(file: &Path) -> bool {
    std::fs::metadata(file).map_or(true, |metadata| metadata.is_file())
}

fn read_all(files: &[PathBuf]) -> anyhow::Result<Vec<Vec<u8>>> {
    files.iter().map(|file| read(file)).collect()
}

/// The content of a file.
///
/// # Errors
///
/// When it cannot be read, or is larger than such files are.
pub fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let name = path.display();
    let mut content = Vec::new();
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    let bounded = &mut file.take(FILE_BYTES_MAX + 1);
    let read = bounded.read_to_end(&mut content);
    read.with_context(|| format!("cannot read {name}"))?;
    let fits = content.len() as u64 <= FILE_BYTES_MAX;
    ensure!(fits, "{name} has more than {FILE_BYTES_MAX} bytes");
    textfile::without_mark(content).with_context(|| format!("cannot read {name}"))
}

/// Secrets are compared, and not kept a second time.
fn digests(contents: &[Vec<u8>]) -> Vec<[u8; 32]> {
    let digest = |content: &Vec<u8>| Sha256::digest(content).into();
    contents.iter().map(digest).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Current ===

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync + 'static> Current<T> {
    /// That value, for now.
    pub fn new(value: T) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// The value of the moment.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, value: T) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }

    fn take(
        &self,
        mut parse: impl FnMut(&[Vec<u8>]) -> anyhow::Result<T> + Send + 'static,
    ) -> Take {
        let current = self.clone();
        Box::new(move |contents| {
            current.set(parse(contents)?);
            Ok(())
        })
    }
}

// === impl Followed ===

impl<T: Send + Sync + 'static> Followed<T> {
    /// The value of the moment.
    pub fn get(&self) -> Arc<T> {
        self.current.get()
    }

    /// A value that no file changes.
    #[cfg(test)]
    pub fn fixed(value: T) -> Self {
        let reload = Reload::new(Duration::MAX, &Handle::current());
        let mut value = Some(value);
        let once = move |_: &[Vec<u8>]| value.take().context("once only");
        reload.follow("fixed", vec![], once).expect("no file fails")
    }

    /// The place of the value, which follows the files for as long as `self` lives.
    pub fn current(&self) -> Current<T> {
        self.current.clone()
    }

    /// Makes the value of other files from now on, or in another way.
    ///
    /// # Errors
    ///
    /// As of [`Reload::follow`]; then all stays as it was.
    pub fn change(
        &self,
        files: Vec<PathBuf>,
        mut parse: impl FnMut(&[Vec<u8>]) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<()> {
        let contents = read_all(&files)?;
        let value = parse(&contents)?;
        let mut watched = lock(&self.watched);
        self.current.set(value);
        watched.seen = Some(digests(&contents));
        watched.files = files;
        watched.take = self.current.take(parse);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn number(contents: &[Vec<u8>]) -> anyhow::Result<u32> {
        let text: String = contents
            .iter()
            .map(|content| String::from_utf8_lossy(content))
            .collect();
        text.trim().parse().context("not a number")
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_changes_is_in_use_at_the_next_look() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, "1").unwrap();
        let reload = Reload::new(INTERVAL, &Handle::current());
        let followed = reload.follow("test", vec![file.clone()], number).unwrap();
        assert_eq!(*followed.get(), 1);

        fs::write(&file, "2").unwrap();
        sleep(INTERVAL * 2).await;
        assert_eq!(*followed.get(), 2);

        fs::write(&file, "not a number").unwrap();
        sleep(INTERVAL * 2).await;
        assert_eq!(*followed.get(), 2, "the old one stays");

        fs::remove_file(&file).unwrap();
        sleep(INTERVAL * 2).await;
        assert_eq!(*followed.get(), 2, "the old one stays");

        fs::write(&file, "3").unwrap();
        sleep(INTERVAL * 2).await;
        assert_eq!(*followed.get(), 3);
    }

    #[tokio::test]
    async fn a_look_tells_what_it_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        fs::write(&file, "1").unwrap();
        let reload = Reload::new(INTERVAL, &Handle::current());
        assert!(
            reload
                .follow("none", vec![folder.path().join("none")], number)
                .is_err()
        );
        let followed = reload.follow("test", vec![file.clone()], number).unwrap();
        let alone = reload.follow("alone", vec![], |_| Ok(7)).unwrap();

        assert!(matches!(reload.look().await[..], [("test", Look::Same)]));
        fs::write(&file, "2").unwrap();
        assert!(matches!(reload.look().await[..], [("test", Look::New)]));
        assert!(matches!(reload.look().await[..], [("test", Look::Same)]));
        fs::write(&file, "x".repeat(FILE_BYTES_MAX as usize + 1)).unwrap();
        assert!(matches!(reload.look().await[..], [("test", Look::Bad(_))]));

        assert!(
            followed
                .change(vec![folder.path().join("none")], number)
                .is_err()
        );
        assert_eq!(*followed.get(), 2, "all stays as it was");
        followed.change(vec![], |_| Ok(5)).unwrap();
        assert_eq!((*followed.get(), *alone.get()), (5, 7));
        drop(followed);
        assert!(reload.look().await.is_empty(), "nobody uses it any more");
    }
}
