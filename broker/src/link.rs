//! The broker's end of the conversation with a confined process. A message that is not permitted ends that process, never
//! the broker.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ipc::channel::{Channel, ChannelError, Message};
use ipc::control::{Conversation, DeviceEvent, FromDevice, FromVmm, MAX_TEXT, Permitted, ToDevice, ToVmm};
use ipc::telemetry::{Intake, Record, Severity, printable};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Packets that are taken at one go: whoever sends without end gets no more of the broker's time than this. The rest comes
/// with the loop's next turn.
pub const TURN: u32 = 64;

/// With the vmm.
pub type VmmLink = Link<ToVmm, FromVmm>;
/// With a device's process.
pub type DeviceLink = Link<ToDevice, FromDevice>;

/// See the module. Says `Out`, hears `In`.
#[derive(Debug)]
pub struct Link<Out, In> {
    channel: Channel<Out, In>,
    conversation: Conversation,
    intake: Intake,
    name: String,
}

/// A message with texts in it, which may be a log event.
pub trait Telling {
    /// The event, if it is one.
    fn record(&self) -> Option<&Record>;
    /// Every text that is not a log event's: all that an operator could come to see.
    fn texts(&mut self) -> Vec<&mut String>;
}

impl Telling for FromVmm {
    fn record(&self) -> Option<&Record> {
        if let Self::Log(record) = self { Some(record) } else { None }
    }

    fn texts(&mut self) -> Vec<&mut String> {
        match self {
            Self::Ready { missing, .. } => missing.iter_mut().collect(),
            Self::Started { protocol, engine, .. } => vec![protocol, engine],
            Self::Rebooted { cause } => vec![cause],
            Self::Device { event: DeviceEvent::Lost(text) | DeviceEvent::NeedsReset(text), .. } => vec![text],
            Self::Device { event: DeviceEvent::Quarantined(specimen), .. } => vec![&mut specimen.what],
            Self::Ended { outcome, stats } => {
                outcome.text().into_iter().chain(stats.iter_mut().map(|(name, _)| name)).collect()
            }
            // The intake has shown it.
            Self::Device { event: DeviceEvent::Restored | DeviceEvent::Stalled(_), .. }
            | Self::Alive(_)
            | Self::Log(_) => Vec::new(),
        }
    }
}

impl Telling for FromDevice {
    fn record(&self) -> Option<&Record> {
        if let Self::Log(record) = self { Some(record) } else { None }
    }

    fn texts(&mut self) -> Vec<&mut String> {
        match self {
            Self::Ready { missing, .. } => missing.iter_mut().collect(),
            Self::Failed(reason) => vec![reason],
            // The intake has shown it.
            Self::Serving { .. } | Self::Attached | Self::Alive(_) | Self::Log(_) => Vec::new(),
        }
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

    /// The next message that is not a log event, if one has come and `left` packets may still be taken: each takes one, log
    /// events too. Log events are logged; the texts of all others are fit to be.
    pub fn hear(&mut self, left: &mut u32) -> Result<Option<In>, ChannelError> {
        while *left > 0 {
            *left -= 1;
            let Some((mut message, _)) = self.channel.try_receive()? else { return Ok(None) };
            self.conversation.pass(&message)?;
            match message.record() {
                Some(record) => show(&self.name, &mut self.intake, record),
                None => {
                    message.texts().into_iter().for_each(|text| *text = printable(text, MAX_TEXT));
                    return Ok(Some(message));
                }
            }
        }
        Ok(None)
    }

    /// Takes nothing more from the other side. What is on its way can still be heard, and then the end: so much is there,
    /// and no more, even if somebody else holds the other end too.
    pub fn close(&self) {
        self.channel.close();
    }

    /// The next message that is not a log event; None if none comes before `until`, whatever else comes. For the start of a
    /// machine alone.
    pub fn await_one(&mut self, until: Instant) -> Result<Option<In>, ChannelError> {
        loop {
            // Reads whatever came before the end, too.
            if let Some(message) = self.hear(&mut { TURN })? {
                return Ok(Some(message));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return Ok(None);
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut [PollFd::new(self.as_fd(), PollFlags::POLLIN)], timeout) {
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
        tracing::warn!(who = %name, "{lost} log events were dropped: it says too much");
    }
    match record.severity {
        Severity::Error => tracing::error!(who = %name, "{text}"),
        Severity::Warn => tracing::warn!(who = %name, "{text}"),
        Severity::Info => tracing::info!(who = %name, "{text}"),
        Severity::Debug => tracing::debug!(who = %name, "{text}"),
        Severity::Trace => tracing::trace!(who = %name, "{text}"),
    }
}

impl<Out, In> AsFd for Link<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use ipc::control::{Phase, Prepare, Start};
    use ipc::specimen::Specimen;

    use super::*;

    fn prepared() -> (VmmLink, Channel<FromVmm, ToVmm>) {
        let (mut link, socket) = VmmLink::new("vmm").unwrap();
        let prepare = Prepare { memory: 1 << 20, engine: String::new(), cpu: String::new(), log_filter: String::new() };
        link.say(&ToVmm::Prepare(prepare), &[]).unwrap();
        (link, Channel::new(socket))
    }

    fn log() -> FromVmm {
        FromVmm::Log(Record { severity: Severity::Info, text: "x".into(), lost: 0 })
    }

    /// Both as if the flood went on: what is there is more than a go.
    #[test]
    fn a_process_that_never_stops_talking_does_not_keep_the_broker() {
        let (mut link, vmm) = prepared();
        let ready = FromVmm::Ready { landlock_proved: true, missing: vec![] };
        (0..2 * TURN).for_each(|_| vmm.send(&log(), &[]).unwrap());
        vmm.send(&ready, &[]).unwrap();
        assert!(matches!(link.hear(&mut { TURN }), Ok(None)));
        // What is waited for is there, but not in time.
        assert!(matches!(link.await_one(Instant::now()), Ok(None)));
        assert_eq!(link.await_one(Instant::now() + Duration::from_secs(600)).unwrap(), Some(ready));
    }

    #[test]
    fn what_was_said_before_the_end_is_heard_and_nothing_after_it() {
        let (mut link, vmm) = prepared();
        (0..TURN).for_each(|_| vmm.send(&log(), &[]).unwrap());
        let ready = FromVmm::Ready { landlock_proved: true, missing: vec![] };
        vmm.send(&ready, &[]).unwrap();
        link.close();
        assert!(matches!(vmm.send(&log(), &[]), Err(ChannelError::Closed)));
        assert!(matches!(link.hear(&mut { TURN }), Ok(None)), "one go is not enough");
        assert_eq!(link.hear(&mut { TURN }).unwrap(), Some(ready));
        assert!(matches!(link.hear(&mut { TURN }), Err(ChannelError::Closed)));
    }

    /// Whatever message carries it, no text of a process reaches a terminal as it was sent.
    #[test]
    fn no_text_is_taken_as_it_is() {
        use ipc::outcome::Outcome;
        let bad = || "\u{1b}[2J".to_owned();
        let device = |event| FromVmm::Device { device: 0, connection: 0, event };
        let ended = |outcome, stats| FromVmm::Ended { outcome, stats };
        let mut messages = vec![
            FromVmm::Ready { landlock_proved: true, missing: vec![bad()] },
            FromVmm::Started { protocol: bad(), engine: bad(), startup_ns: 0 },
            FromVmm::Rebooted { cause: bad() },
            device(DeviceEvent::Lost(bad())),
            device(DeviceEvent::NeedsReset(bad())),
            device(DeviceEvent::Quarantined(Box::new(Specimen { what: bad(), ..Specimen::default() }))),
        ];
        messages.extend([Outcome::Reset, Outcome::Unsupported, Outcome::StartFailed].map(|o| ended(o(bad()), vec![])));
        messages.push(ended(Outcome::PowerOff, vec![(bad(), 1)]));
        for message in messages {
            let (mut link, vmm) = prepared();
            // Every message is permitted somewhere; where is not the question here.
            link.conversation = Conversation::default();
            let row = ipc::control::Permitted::row(&message);
            bring_to(&mut link.conversation, row.1[0].0);
            vmm.send(&message, &[]).unwrap();
            let heard = format!("{:?}", link.hear(&mut { TURN }).unwrap().unwrap());
            // Debug escapes the backslash of an escape, and the character itself only once.
            assert!(heard.contains(r"\\u{1b}"), "{heard}");
        }
        let (mut link, socket) = DeviceLink::new("disk0").unwrap();
        let device = Channel::<FromDevice, ToDevice>::new(socket);
        link.say(&ToDevice::Prepare { log_filter: String::new() }, &[]).unwrap();
        device.send(&FromDevice::Failed(bad()), &[]).unwrap();
        assert_eq!(link.hear(&mut { TURN }).unwrap(), Some(FromDevice::Failed(r"\u{1b}[2J".into())));
    }

    type Step<'a> = &'a dyn Fn(&mut Conversation) -> Result<(), ChannelError>;

    fn bring_to(conversation: &mut Conversation, phase: Phase) {
        let prepare = Prepare { memory: 1 << 20, engine: String::new(), cpu: String::new(), log_filter: String::new() };
        let start = Start {
            command_line: String::new(),
            no_reboot: false,
            stats: false,
            started_ns: 0,
            initrd: false,
            devices: vec![],
        };
        let ready = FromVmm::Ready { landlock_proved: true, missing: vec![] };
        let started = FromVmm::Started { protocol: String::new(), engine: String::new(), startup_ns: 0 };
        let steps: [Step<'_>; 4] = [
            &|c| c.pass(&ToVmm::Prepare(prepare.clone())),
            &|c| c.pass(&ready),
            &|c| c.pass(&ToVmm::Start(start.clone())),
            &|c| c.pass(&started),
        ];
        for step in steps {
            if conversation.phase() != phase {
                step(conversation).unwrap();
            }
        }
        assert_eq!(conversation.phase(), phase);
    }
}
