//! What a service manager is told of the machine: sd_notify(3), where NOTIFY_SOCKET says that one listens.
//!
//! Nothing here blocks: what finds the manager's queue full is kept and said later, the latest of it.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// When what found no room is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// States that are kept for then.
const MAX_KEPT: usize = 4;

/// See the module.
#[derive(Debug)]
pub struct Notifier {
    manager: Option<(UnixDatagram, SocketAddr)>,
    /// Between two signs of life, and when the next is due.
    watchdog: Option<(Duration, Instant)>,
    /// Not said yet, oldest first.
    kept: Vec<String>,
}

impl Notifier {
    /// Whoever started us says by the environment whether it wants to be told. What is wrong there is a warning: the machine
    /// runs all the same.
    pub fn from_environment() -> Self {
        let manager = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()).and_then(|name| {
            let connected = connect(&name);
            let warn = |error| tracing::warn!("NOTIFY_SOCKET={name:?} cannot be told anything: {error}");
            connected.map_err(warn).ok()
        });
        let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let period = number("WATCHDOG_USEC").filter(|period| ours && *period > 0 && manager.is_some());
        // Twice as often as it is asked for, as sd_watchdog_enabled(3) advises.
        let every = period.map(|period| Duration::from_micros(period / 2).max(Duration::from_millis(1)));
        Self { manager, watchdog: every.map(|every| (every, Instant::now())), kept: Vec::new() }
    }

    /// Tells the state: lines of `NAME=value`.
    pub fn tell(&mut self, state: &str) {
        if self.manager.is_some() && self.kept.len() < MAX_KEPT {
            self.kept.push(state.into());
            self.retry();
        }
    }

    /// When to call [`Self::turn`] at the latest.
    pub fn next(&self) -> Option<Instant> {
        let again = (!self.kept.is_empty()).then(|| Instant::now() + AGAIN);
        [again, self.watchdog.map(|(_, due)| due)].into_iter().flatten().min()
    }

    /// Does what time demands. A machine that is not `healthy` gives no sign of life.
    pub fn turn(&mut self, now: Instant, healthy: bool) {
        self.retry();
        if let Some((every, due)) = &mut self.watchdog
            && *due <= now
        {
            *due = now + *every;
            // One that finds no room is followed by another.
            let _ = healthy && self.say("WATCHDOG=1");
        }
    }

    fn retry(&mut self) {
        while let Some(state) = self.kept.first()
            && self.say(state)
        {
            self.kept.remove(0);
        }
    }

    /// False if there is no room. A manager that is gone needs not be told.
    fn say(&self, state: &str) -> bool {
        let Some((socket, address)) = &self.manager else { return true };
        match socket.send_to_addr(state.as_bytes(), address) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => false,
            Err(error) => {
                tracing::debug!("telling the service manager {state:?}: {error}");
                true
            }
            Ok(_) => true,
        }
    }
}

/// A socket's path, or the name of an abstract one behind an `@`.
fn connect(name: &OsString) -> std::io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(std::io::Error::new(ErrorKind::Unsupported, "give a path, or @ and a name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The manager's socket, and a notifier that knows it.
    fn pair(dir: &tempfile::TempDir) -> (UnixDatagram, Notifier) {
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let to = connect(&path.into_os_string()).unwrap();
        let watchdog = Some((Duration::from_secs(5), Instant::now()));
        (manager, Notifier { manager: Some(to), watchdog, kept: Vec::new() })
    }

    fn heard(manager: &UnixDatagram) -> Option<String> {
        let mut buffer = [0; 100];
        let length = manager.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[test]
    fn a_manager_that_does_not_read_is_told_later_and_waited_for_never() {
        let dir = tempfile::tempdir().unwrap();
        let (manager, mut notifier) = pair(&dir);
        while notifier.say("noise") {}
        notifier.tell("READY=1");
        notifier.tell("STOPPING=1");
        assert!(notifier.next().is_some() && notifier.kept.len() == 2);
        while heard(&manager).is_some() {}
        let now = Instant::now();
        notifier.turn(now, true);
        let all: Vec<String> = std::iter::from_fn(|| heard(&manager)).collect();
        assert_eq!(all, ["READY=1", "STOPPING=1", "WATCHDOG=1"]);
        notifier.turn(now + Duration::from_secs(9), false);
        assert_eq!(heard(&manager), None, "a machine that does not answer gives no sign of life");
        notifier.turn(now + Duration::from_secs(14), true);
        assert_eq!(heard(&manager).as_deref(), Some("WATCHDOG=1"));
        drop(manager);
        notifier.tell("STATUS=nobody hears this");
        assert!(notifier.kept.is_empty());
    }

    #[test]
    fn sockets_have_paths_or_abstract_names() {
        for (name, good) in [("/run/x", true), ("@x", true), ("vsock:2:1", false), ("x", false)] {
            assert_eq!(connect(&name.into()).is_ok(), good, "{name}");
        }
    }
}
