//! Which message is permitted in which state of a conversation: the one table of each kind of process, used by both ends.

use super::{FromDevice, FromVmm, ToDevice, ToVmm};
use crate::channel::ChannelError;

/// How far a conversation with a process has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was said.
    New,
    /// It knows what to make, and confines itself.
    Confining,
    /// It says that it is confined; the broker is to look.
    Confined,
    /// It has what it needs, and prepares its work.
    Starting,
    /// It works: the guest runs, or the disk is served.
    Running,
    /// It is over.
    Ended,
}

use Phase::{Confined, Confining, Ended, New, Running, Starting};

impl Phase {
    /// In messages: "not permitted while …".
    fn name(self) -> &'static str {
        match self {
            New => "nothing has been said",
            Confining => "the process confines itself",
            Confined => "the process waits to be verified",
            Starting => "the process prepares its work",
            Running => "the process works",
            Ended => "the process has ended",
        }
    }
}

/// A row: the message, the states in which it is permitted (where it leads is the second, None for nowhere), each once.
pub type Row = (&'static str, &'static [(Phase, Option<Phase>)]);

/// A message that has its row in a table.
pub trait Permitted {
    /// The row.
    fn row(&self) -> &'static Row;
}

/// Everywhere but at the beginning and at the end, changing nothing.
const ANY_TIME: &[(Phase, Option<Phase>)] = &[(Confining, None), (Confined, None), (Starting, None), (Running, None)];
/// Once it has what it works with.
const STARTED: &[(Phase, Option<Phase>)] = &[(Starting, None), (Running, None)];

/// The last message.
const ENDS: &[(Phase, Option<Phase>)] =
    &[(Confining, Some(Ended)), (Confined, Some(Ended)), (Starting, Some(Ended)), (Running, Some(Ended))];

impl Permitted for ToVmm {
    fn row(&self) -> &'static Row {
        match self {
            Self::Prepare(_) => &("Prepare", &[(New, Some(Confining))]),
            Self::Start(_) => &("Start", &[(Confined, Some(Starting))]),
            Self::PowerButton => &("PowerButton", STARTED),
            Self::Beat(_) => &("Beat", STARTED),
            Self::Replace { .. } => &("Replace", STARTED),
            Self::Abandon { .. } => &("Abandon", STARTED),
            Self::Stop => &("Stop", ANY_TIME),
        }
    }
}

impl Permitted for FromVmm {
    fn row(&self) -> &'static Row {
        match self {
            Self::Ready { .. } => &("Ready", &[(Confining, Some(Confined))]),
            Self::Started { .. } => &("Started", &[(Starting, Some(Running))]),
            Self::Rebooted { .. } => &("Rebooted", &[(Running, None)]),
            Self::Device { .. } => &("Device", STARTED),
            Self::Alive(_) => &("Alive", STARTED),
            Self::Log(_) => &("Log", ANY_TIME),
            Self::Ended { .. } => &("Ended", ENDS),
        }
    }
}

impl Permitted for ToDevice {
    fn row(&self) -> &'static Row {
        match self {
            Self::Prepare { .. } => &("Prepare", &[(New, Some(Confining))]),
            Self::Serve(_) => &("Serve", &[(Confined, Some(Starting))]),
            Self::Attach(_) => &("Attach", &[(Confined, Some(Starting))]),
            Self::Beat(_) => &("Beat", STARTED),
            Self::Resize => &("Resize", &[(Running, None)]),
        }
    }
}

impl Permitted for FromDevice {
    fn row(&self) -> &'static Row {
        match self {
            Self::Ready { .. } => &("Ready", &[(Confining, Some(Confined))]),
            Self::Serving { .. } => &("Serving", &[(Starting, Some(Running))]),
            Self::Attached => &("Attached", &[(Starting, Some(Running))]),
            Self::Alive(_) => &("Alive", STARTED),
            Self::Log(_) => &("Log", ANY_TIME),
            Self::Failed(_) => &("Failed", ENDS),
        }
    }
}

/// The state of a conversation, at either end. Every message in either direction passes through it.
#[derive(Clone, Copy, Debug)]
pub struct Conversation(Phase);

impl Default for Conversation {
    fn default() -> Self {
        Self(New)
    }
}

impl Conversation {
    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.0
    }

    /// A message in either direction: an error if it is not permitted now.
    pub fn pass(&mut self, message: &impl Permitted) -> Result<(), ChannelError> {
        let (message, states) = message.row();
        match states.iter().find(|(phase, _)| *phase == self.0) {
            Some((_, next)) => {
                self.0 = next.unwrap_or(self.0);
                Ok(())
            }
            None => Err(ChannelError::OutOfState { message, state: self.0.name() }),
        }
    }
}
