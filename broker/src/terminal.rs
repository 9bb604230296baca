//! The operator's terminal in raw mode, and back to what it was on every way out.
//!
//! The guard restores on drop; a panic hook restores first, since a release build aborts; stop signals come through the
//! event loop and end in the drop too. Output processing stays on, so that log lines of both processes look right.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Mutex;

use nix::sys::termios::{InputFlags, LocalFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr, tcsetattr};

/// What to restore, where: reachable from the panic hook.
static SAVED: Mutex<Option<(OwnedFd, Termios)>> = Mutex::new(None);

/// A terminal in raw mode. One at a time.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes `terminal` raw. None if it is not a terminal.
    pub fn enter(terminal: impl AsFd) -> io::Result<Option<Self>> {
        let fd = terminal.as_fd();
        let Ok(before) = tcgetattr(fd) else { return Ok(None) };
        let own = fd.try_clone_to_owned()?;
        let mut raw = before.clone();
        raw.input_flags.remove(
            InputFlags::IGNBRK
                | InputFlags::BRKINT
                | InputFlags::PARMRK
                | InputFlags::ISTRIP
                | InputFlags::INLCR
                | InputFlags::IGNCR
                | InputFlags::ICRNL
                | InputFlags::IXON,
        );
        raw.local_flags
            .remove(LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::IEXTEN);
        raw.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        raw.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        *SAVED.lock().unwrap_or_else(|e| e.into_inner()) = Some((own, before));
        let guard = Self(());
        let default_hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            default_hook(info);
        }));
        tcsetattr(fd, SetArg::TCSANOW, &raw)?;
        Ok(Some(guard))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal, once. A terminal that is gone cannot be restored.
fn restore() {
    let saved = SAVED.try_lock().ok().and_then(|mut saved| saved.take());
    if let Some((fd, before)) = saved {
        let _ = tcsetattr(fd, SetArg::TCSANOW, &before);
    }
}
