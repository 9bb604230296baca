//! The broker's end of the conversation with a confined process. A message that is not permitted ends that process, never
//! the broker.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ipc::channel::{Channel, ChannelError, Message};
use ipc::control::{Conversation, FromDevice, FromVmm, Permitted, ToDevice, ToVmm};
use ipc::telemetry::{Intake, Record, Severity};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// With the vmm.
pub type VmmLink = Link<ToVmm, FromVmm>;
/// With a device's process.
pub type DeviceLink = Link<ToDevice, FromDevice>;

/// Messages that are taken at a time: who sends without end does not keep the broker from everything else.
pub const BUDGET: usize = 64;

/// See the module. Says `Out`, hears `In`.
#[derive(Debug)]
pub struct Link<Out, In> {
    channel: Channel<Out, In>,
    conversation: Conversation,
    intake: Intake,
    name: String,
}

/// A message that may be a log event.
pub trait Telling {
    /// The event, if it is one.
    fn record(&self) -> Option<&Record>;
}

impl Telling for FromVmm {
    fn record(&self) -> Option<&Record> {
        if let Self::Log(record) = self { Some(record) } else { None }
    }
}

impl Telling for FromDevice {
    fn record(&self) -> Option<&Record> {
        if let Self::Log(record) = self { Some(record) } else { None }
    }
}

impl<Out: Message + Permitted, In: Message + Permitted + Telling> Link<Out, In> {
    /// A new conversation with the process that messages call `name`, and the socket for it.
    pub fn new(name: &str) -> Result<(Self, OwnedFd), ChannelError> {
        let (channel, theirs) = Channel::pair()?;
        let (conversation, intake) = (Conversation::default(), Intake::new(Instant::now()));
        Ok((Self { channel, conversation, intake, name: name.into() }, theirs))
    }

    /// Says something that the table permits.
    pub fn say(&mut self, message: &Out, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let mut after = self.conversation;
        after.pass(message)?;
        self.channel.send(message, descriptors)?;
        self.conversation = after;
        Ok(())
    }

    /// The next message that is not a log event, if one has come. Log events are logged, no more than [`BUDGET`] of them.
    pub fn hear(&mut self) -> Result<Option<In>, ChannelError> {
        for _ in 0..BUDGET {
            let Some((message, _)) = self.channel.try_receive()? else { return Ok(None) };
            self.conversation.pass(&message)?;
            match message.record() {
                Some(record) => show(&self.name, &mut self.intake, record),
                None => return Ok(Some(message)),
            }
        }
        Ok(None)
    }

    /// The next message that is not a log event; None if none comes within `patience`. For the start of a machine alone.
    pub fn await_one(&mut self, patience: Duration) -> Result<Option<In>, ChannelError> {
        let until = Instant::now() + patience;
        loop {
            // Reads whatever came before the end, too.
            if let Some(message) = self.hear()? {
                return Ok(Some(message));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(0) => return Ok(None),
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(source) => return Err(ChannelError::Receive(source)),
            }
        }
    }
}

fn show(name: &str, intake: &mut Intake, record: &Record) {
    let Some((text, unshown)) = intake.admit(&record.text, Instant::now()) else { return };
    let lost = unshown + u64::from(record.lost);
    if lost > 0 {
        tracing::warn!("{name}: {lost} log events were dropped: it says too much");
    }
    match record.severity {
        Severity::Error => tracing::error!("{name}: {text}"),
        Severity::Warn => tracing::warn!("{name}: {text}"),
        Severity::Info => tracing::info!("{name}: {text}"),
        Severity::Debug => tracing::debug!("{name}: {text}"),
        Severity::Trace => tracing::trace!("{name}: {text}"),
    }
}

impl<Out, In> AsFd for Link<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
