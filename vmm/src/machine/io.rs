//! The thread beside the processor: console and uplink. It never waits for the processor, so the operator's stop is served
//! whatever the guest does. Timers are not its business: they interrupt the processor's own thread.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use ipc::control::{FromVmm, ToVmm};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::alarm::Alarm;
use super::console::Console;
use super::news::News;
use crate::Uplink;
use crate::chipset::Board;
use crate::cpu::Lines;
use crate::virtio::VirtioPci;

/// What the processor's thread and the I/O thread share.
pub struct Shared {
    /// The board, for the deadline hook; it holds us in turn.
    board: OnceLock<Weak<Board>>,
    /// Wires into the processor.
    pub lines: Arc<Lines>,
    /// Interrupts the processor's thread for the board's deadlines, once that thread is known.
    alarm: OnceLock<Alarm>,
    /// Wakes the I/O thread: the serial port has output, or room again, or the machine has ended.
    pub wake: EventFd,
    /// The operator wants the machine to end now.
    stop: AtomicBool,
    /// The processor's thread is done; what is left of the output is to be written.
    ended: AtomicBool,
}

impl Shared {
    /// Nothing asked for, alarm off.
    pub fn new(lines: Arc<Lines>) -> nix::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let (board, alarm) = (OnceLock::new(), OnceLock::new());
        Ok(Self { board, lines, alarm, wake, stop: AtomicBool::new(false), ended: AtomicBool::new(false) })
    }

    /// Says which board these belong to, once.
    pub fn attach(&self, board: &Arc<Board>) {
        let _ = self.board.set(Arc::downgrade(board));
    }

    /// The calling thread is the processor's: the alarm is to interrupt it. Once.
    pub fn set_alarm(&self) -> nix::Result<()> {
        let _ = self.alarm.set(Alarm::new()?);
        Ok(())
    }

    /// The board's next deadline is earlier than it was.
    pub fn deadline_moved(&self) {
        let board = self.board.get().and_then(Weak::upgrade);
        if let (Some(board), Some(alarm)) = (board, self.alarm.get())
            && let Some(deadline) = board.next_deadline()
        {
            alarm.no_later_than(deadline);
        }
    }

    /// Has the board serve the timers that are due, and sets the alarm for its next deadline. For the processor's thread.
    pub fn keep_time(&self, board: &Board) {
        let Some(alarm) = self.alarm.get() else { return };
        alarm.passed(board.clock().now());
        board.advance();
        if let Some(deadline) = board.next_deadline() {
            alarm.no_later_than(deadline);
        }
    }

    /// Wakes the I/O thread.
    pub fn wake(&self) {
        // A full counter wakes as well.
        let _ = self.wake.write(1);
    }

    /// True if the operator wants the machine to end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.lines.request();
    }

    /// Lets the I/O thread finish.
    pub fn end(&self) {
        if let Some(alarm) = self.alarm.get() {
            alarm.off();
        }
        self.ended.store(true, Ordering::Release);
        self.wake();
    }
}

/// Runs until the machine has ended and its output is written, or the operator cares no more.
pub fn run(
    shared: &Shared,
    board: &Board,
    devices: &[Arc<VirtioPci>],
    uplink: &Uplink,
    news: &News,
    mut console: Console,
) {
    let mut uplink_open = true;
    loop {
        let ended = shared.ended.load(Ordering::Acquire);
        console.pump(board, false);
        if ended && (!console.pending() || shared.stopped()) {
            return;
        }
        let mut interest = PollFlags::POLLIN;
        // What found no room in the channel waits for some.
        interest.set(PollFlags::POLLOUT, !news.retry(|message| uplink.say(message)));
        let ready = wait(shared, uplink_open.then_some((uplink, interest)), &console);
        let Some([wake, orders, stream]) = ready else { continue };
        if !wake.is_empty() {
            let _ = shared.wake.read();
        }
        if !orders.is_empty() {
            uplink_open = obey(shared, board, devices, uplink);
        }
        if stream.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            console.pump(board, true);
        }
    }
}

/// Waits for any of wake, uplink and console. None if a signal came first.
fn wait(shared: &Shared, uplink: Option<(&Uplink, PollFlags)>, console: &Console) -> Option<[PollFlags; 3]> {
    let input = PollFlags::POLLIN;
    let mut places = vec![0];
    let mut fds = vec![PollFd::new(shared.wake.as_fd(), input)];
    if let Some((uplink, interest)) = uplink {
        places.push(1);
        fds.push(PollFd::new(uplink.as_fd(), interest));
    }
    if let Some((fd, flags)) = console.interest() {
        places.push(2);
        fds.push(PollFd::new(fd, flags));
    }
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) => {}
        Err(Errno::EINTR) => return None,
        // Only bad descriptors or a lack of kernel memory: let the loop try again, without spinning hot.
        Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
    }
    let mut ready = [PollFlags::empty(); 3];
    for (place, fd) in places.into_iter().zip(&fds) {
        ready[place] = fd.revents().unwrap_or(PollFlags::empty());
    }
    Some(ready)
}

/// Carries out what the broker asks for. False once it is gone, which is a stop.
fn obey(shared: &Shared, board: &Board, devices: &[Arc<VirtioPci>], uplink: &Uplink) -> bool {
    let device = |number: u16| devices.get(usize::from(number));
    match uplink.poll() {
        Ok(Some((ToVmm::PowerButton, _))) => board.press_power_button(),
        Ok(Some((ToVmm::Beat(number), _))) => {
            // A broker that does not read is told nothing; it asks again.
            let _ = uplink.say(&FromVmm::Alive(number));
        }
        Ok(Some((ToVmm::Replace { device: number, fault }, descriptors))) => {
            if let (Some(device), Some(socket)) = (device(number), descriptors.into_iter().next()) {
                device.replace(socket, fault);
            }
        }
        Ok(Some((ToVmm::Abandon { device: number }, _))) => {
            if let Some(device) = device(number) {
                device.abandon();
            }
        }
        Ok(Some((ToVmm::Stop, _))) => shared.stop(),
        // What the table does not permit while the guest runs was an error before it came here.
        Ok(Some((ToVmm::Prepare(_) | ToVmm::Start(_), _)) | None) => {}
        Err(error) => {
            tracing::debug!("control channel: {error}");
            shared.stop();
            return false;
        }
    }
    true
}
