//! A server process that cannot outlive the test that started it.
//!
//! The shell in between waits for its standard input to end. That happens when this side closes
//! it, and also when the test process is killed with no chance to clean up. Then it kills the
//! server and collects it, so that not even a zombie is left.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// `$0` is the server's binary. `read` is built in, so the shell does not collect a server that
/// died early: its process id stays taken, and the `kill` cannot hit somebody else. A signal ends
/// the `read` and not the shell; SIGPIPE is what `echo` gets when the test process is gone by then.
const LEASH: &str = r#"
trap : HUP INT TERM PIPE
command -v "$0" >/dev/null || exit 127
"$0" "$@" </dev/null >&2 &
echo $!
read -r _
kill -9 $! 2>/dev/null
wait $! 2>/dev/null
"#;

#[derive(Debug)]
pub(crate) struct Process {
    shell: Child,
    pid: Pid,
}

impl Process {
    /// Starts `binary` with both its outputs going to the file `log`.
    ///
    /// [`io::ErrorKind::NotFound`] means that there is no such binary.
    pub(crate) fn start(
        binary: &str,
        argument: &Path,
        log: &Path,
        environment: &[(&str, &Path)],
    ) -> io::Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", LEASH, binary])
            .arg(argument)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(log)?)
            // Ctrl-C is for the test; the server then ends with it, even when it is paused.
            .process_group(0)
            .spawn()?;
        let mut line = String::new();
        let printed =
            shell.stdout.take().map(BufReader::new).map(|mut out| out.read_line(&mut line));
        printed.transpose()?;
        match line.trim().parse().ok().and_then(Pid::from_raw) {
            Some(pid) => Ok(Self { shell, pid }),
            None => {
                shell.wait()?;
                Err(io::ErrorKind::NotFound.into())
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether the process ended by itself.
    pub(crate) fn has_exited(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        // The state follows the name, which is in brackets and may hold anything.
        stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
    }

    pub(crate) fn pause(&self) {
        kill_process(self.pid, Signal::STOP).expect("SIGSTOP reaches the server");
    }

    pub(crate) fn resume(&self) {
        kill_process(self.pid, Signal::CONT).expect("SIGCONT reaches the server");
    }
}

impl Drop for Process {
    /// SIGKILL, which a stopped process obeys as well, and wait until it is gone.
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}
