//! The broker's end of the conversation with a vmm. A message that is not permitted ends the vmm, never the broker.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ipc::ChannelError;
use ipc::control::{BrokerChannel, Conversation, FromVmm, ToVmm};
use ipc::telemetry::{Intake, Record, Severity};

/// See the module.
#[derive(Debug)]
pub struct Link {
    channel: BrokerChannel,
    conversation: Conversation,
    intake: Intake,
}

impl Link {
    /// A new conversation, and the socket for the vmm.
    pub fn new() -> Result<(Self, OwnedFd), ChannelError> {
        let (channel, theirs) = BrokerChannel::pair()?;
        Ok((Self { channel, conversation: Conversation::default(), intake: Intake::new(Instant::now()) }, theirs))
    }

    /// Says something that the table permits.
    pub fn say(&mut self, message: &ToVmm, descriptors: &[BorrowedFd<'_>]) -> Result<(), ChannelError> {
        let mut after = self.conversation;
        after.to_vmm(message)?;
        self.channel.send(message, descriptors)?;
        self.conversation = after;
        Ok(())
    }

    /// The next message that is not a log event, if one has come. Log events are logged.
    pub fn hear(&mut self) -> Result<Option<FromVmm>, ChannelError> {
        while let Some((message, _)) = self.channel.try_receive()? {
            self.conversation.from_vmm(&message)?;
            match message {
                FromVmm::Log(record) => self.log(&record),
                other => return Ok(Some(other)),
            }
        }
        Ok(None)
    }

    fn log(&mut self, record: &Record) {
        let Some((text, unshown)) = self.intake.admit(&record.text, Instant::now()) else { return };
        let lost = unshown + u64::from(record.lost);
        if lost > 0 {
            tracing::warn!("vmm: {lost} log events were dropped: it says too much");
        }
        match record.severity {
            Severity::Error => tracing::error!("vmm: {text}"),
            Severity::Warn => tracing::warn!("vmm: {text}"),
            Severity::Info => tracing::info!("vmm: {text}"),
            Severity::Debug => tracing::debug!("vmm: {text}"),
            Severity::Trace => tracing::trace!("vmm: {text}"),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}
