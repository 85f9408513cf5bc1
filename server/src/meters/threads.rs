//! CPU time of the threads that a node has one of, or one for each core. The sum for the process hides the one that is
//! at its end: the node actor and the bus have one thread each, however many cores there are.

use std::sync::{Mutex, PoisonError};

/// Threads of a node, which last as long as it does.
#[derive(Default)]
pub struct Threads(Mutex<Vec<(String, Thread)>>);

/// Its number in the system; nothing where that does not say what threads have used.
#[derive(Clone, Copy)]
struct Thread(#[cfg(target_os = "linux")] i32);

impl Threads {
    /// Counts the thread that calls this, by that name.
    pub fn enter(&self, name: String) {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        threads.push((name, Thread::current()));
    }

    /// What each has used, in seconds. One that cannot be read is left out.
    pub fn cpu_seconds(&self) -> Vec<(String, f64)> {
        let threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let used = threads
            .iter()
            .map(|(name, thread)| Some((name.clone(), thread.cpu_seconds()?)));
        used.flatten().collect()
    }
}

#[cfg(target_os = "linux")]
impl Thread {
    fn current() -> Self {
        Self(rustix::thread::gettid().as_raw_nonzero().get())
    }

    fn cpu_seconds(self) -> Option<f64> {
        let process = procfs::process::Process::myself().ok()?;
        let stat = process.task_from_tid(self.0).ok()?.stat().ok()?;
        Some((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
    }
}

#[cfg(not(target_os = "linux"))]
impl Thread {
    fn current() -> Self {
        Self()
    }

    fn cpu_seconds(self) -> Option<f64> {
        None
    }
}
