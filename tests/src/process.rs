//! Child processes that die with their owner, and free ports for them.

use std::collections::hash_map::RandomState;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::panic::Location;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};

use crate::eventually;

/// A child process, its output kept in files; killed and reaped on drop.
///
/// When a test panics, the end of what the process wrote is printed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
    status: Option<ExitStatus>,
}

/// What becomes of the output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// It is kept in files.
    Kept,
    /// There is no place on the disk.
    ToFullDisk,
    /// It goes to a pipe whose other end is closed.
    ToNobody,
}

// === impl Process ===

impl Process {
    /// Starts the command with its output in `<directory>/<name>.out` and `.err`.
    ///
    /// # Panics
    /// When the program cannot be started; `hint` says what to do about it.
    pub fn spawn(name: &str, command: Command, directory: &Path, hint: &str) -> Self {
        Self::spawn_with(name, command, directory, hint, Output::Kept)
    }

    /// The same, with that output.
    pub fn spawn_with(
        name: &str,
        mut command: Command,
        directory: &Path,
        hint: &str,
        output: Output,
    ) -> Self {
        let stdout = directory.join(format!("{name}.out"));
        let stderr = directory.join(format!("{name}.err"));
        let stream = |path: &Path| -> Stdio {
            match output {
                Output::Kept => File::create(path)
                    .expect("a file in the test's own directory")
                    .into(),
                Output::ToFullDisk => File::options()
                    .write(true)
                    .open("/dev/full")
                    .expect("a Linux")
                    .into(),
                Output::ToNobody => io::pipe().expect("a pipe").1.into(),
            }
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(stream(&stdout))
            .stderr(stream(&stderr))
            .spawn()
            .unwrap_or_else(|error| {
                let program = command.get_program().display();
                panic!("cannot start {program}: {error}; {hint}")
            });
        Self {
            name: name.to_owned(),
            child,
            stdout,
            stderr,
            status: None,
        }
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process has written to its standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.stdout)
    }

    /// What the process has written to its standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.stderr)
    }

    /// SIGTERM: asks it to end in good order.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// SIGINT: what a keyboard sends.
    pub fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// SIGQUIT: ends it at once.
    pub fn quit(&self) {
        self.signal(Signal::QUIT);
    }

    /// SIGHUP: has it read again what can be.
    pub fn hang_up(&self) {
        self.signal(Signal::HUP);
    }

    /// SIGUSR1: whatever the program means by it.
    pub fn user_signal_1(&self) {
        self.signal(Signal::USR1);
    }

    /// SIGUSR2: whatever the program means by it.
    pub fn user_signal_2(&self) {
        self.signal(Signal::USR2);
    }

    /// SIGSTOP: it stays there, and answers nothing. Returns when every thread has stopped.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        while !self.threads().all(|state| state == 'T') {
            thread::yield_now();
        }
    }

    /// SIGCONT: it goes on where it stopped.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.status().is_none() {
            self.signal(Signal::KILL);
            self.status = self.child.wait().ok();
        }
    }

    /// SIGTERM, and waits until it has ended: for what has children of its own to take along.
    pub fn end(&mut self) {
        if self.status().is_none() {
            self.signal(Signal::TERM);
            self.status = self.child.wait().ok();
        }
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("waiting for an own child");
        }
        self.status
    }

    /// Waits until it has ended by itself.
    #[track_caller]
    pub fn exited(&mut self) -> impl Future<Output = ExitStatus> {
        let what = format!("{} exits ({})", self.name, Location::caller());
        async move { eventually(&what, async || self.status()).await }
    }

    /// Panics with everything it wrote when it has ended already.
    pub(crate) fn must_run(&mut self) {
        if let Some(status) = self.status() {
            panic!(
                "{} ended at once: {status}\n{}{}",
                self.name,
                self.stdout(),
                self.stderr()
            );
        }
    }

    /// CPU time used so far, in clock ticks (usually 10 ms each).
    pub fn cpu_ticks(&self) -> u64 {
        let stat = read(Path::new(&format!("/proc/{}/stat", self.pid())));
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<u64>().expect("ticks are a number"))
            .sum()
    }

    /// Nanoseconds on a CPU of each worker thread of a node.
    pub fn workers_cpu(&self) -> Vec<u64> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the process runs");
        let mut workers: Vec<_> = (tasks.flatten().map(|task| task.path()))
            // As the runtime of actix names them, and the kernel cuts it.
            .filter(|task| read(&task.join("comm")).starts_with("actix-rt"))
            .collect();
        workers.sort_unstable();
        let spent = workers.iter().map(|task| read(&task.join("schedstat")));
        spent
            .map(|stat| {
                let spent = stat.split_whitespace().next();
                spent.and_then(|ns| ns.parse().ok()).expect("a number")
            })
            .collect()
    }

    /// Open file descriptors.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .expect("the process runs")
            .count()
    }

    /// Open file descriptors for which the kernel has room already.
    pub fn file_slots(&self) -> u64 {
        self.kernel_status("FDSize:")
    }

    /// From now on it may open so many files, and no more.
    pub fn limit_open_files(&self, limit: u64) {
        let limit = Rlimit {
            current: Some(limit),
            maximum: Some(limit),
        };
        let limited = prlimit(Some(Pid::from_child(&self.child)), Resource::Nofile, limit);
        limited.expect("a process of this user");
    }

    /// Resident memory in KiB.
    pub fn memory_kib(&self) -> u64 {
        self.kernel_status("VmRSS:")
    }

    /// A number that the kernel has of the process.
    fn kernel_status(&self, name: &str) -> u64 {
        let status = read(Path::new(&format!("/proc/{}/status", self.pid())));
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("{name} is a number"))
    }

    /// The state of each thread, as a letter.
    fn threads(&self) -> impl Iterator<Item = char> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid())).expect("the process runs");
        let stats = tasks.flatten().map(|task| read(&task.path().join("stat")));
        stats.filter_map(|stat| stat.rsplit(')').next()?.trim_start().chars().next())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the process was not reaped yet");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            for (stream, text) in [("stdout", self.stdout()), ("stderr", self.stderr())] {
                // How a nats-server introduces itself is of no interest.
                let lines: Vec<&str> = text
                    .lines()
                    .filter(|line| !line.contains("[INF]"))
                    .collect();
                let tail = lines[lines.len().saturating_sub(40)..].join("\n");
                if !tail.is_empty() {
                    eprintln!("--- {} {stream}\n{tail}", self.name);
                }
            }
        }
    }
}

/// A port on loopback that nobody listens on, for a server that must come back on the same one.
///
/// It is taken from below the range the kernel gives to clients: a node that dials an absent server
/// there could otherwise be given that very port as its own, and talk to itself.
pub fn free_port() -> u16 {
    const FIRST: u16 = 15_000;
    const COUNT: u16 = 15_000;
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| {
        let random = RandomState::new().build_hasher().finish();
        AtomicU16::new((random % u64::from(COUNT)) as u16)
    });
    // A server that is down for a while leaves its port free: its twin of UDP, which nobody else uses, says to
    // other tests that it is taken, for as long as this process lives.
    static TAKEN: Mutex<Vec<UdpSocket>> = Mutex::new(Vec::new());
    let take = |port: &u16| {
        let address = (Ipv4Addr::LOCALHOST, *port);
        let mine = UdpSocket::bind(address).ok()?;
        TcpListener::bind(address).ok().map(|_| mine)
    };
    (0..COUNT)
        .map(|_| FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT)
        .find_map(|port| {
            let mine = take(&port)?;
            TAKEN
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(mine);
            Some(port)
        })
        .expect("one of 15000 ports is free")
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}
