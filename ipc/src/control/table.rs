//! Which message is permitted in which state of the conversation: the one table, used by both ends.

use super::{FromVmm, ToVmm};
use crate::channel::ChannelError;

/// How far a conversation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing was said.
    New,
    /// The vmm knows what to make, and confines itself.
    Confining,
    /// It says that it is confined; the broker is to look.
    Confined,
    /// It has what it needs, and starts the guest.
    Starting,
    /// The guest runs.
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
            Confining => "the vmm confines itself",
            Confined => "the vmm waits to be verified",
            Starting => "the guest is being started",
            Running => "the guest runs",
            Ended => "the machine has ended",
        }
    }
}

/// A row: the message, the states in which it is permitted (where it leads is the second, None for nowhere), each once.
type Row = (&'static str, &'static [(Phase, Option<Phase>)]);

/// Everywhere but at the beginning and at the end, changing nothing.
const ANY_TIME: &[(Phase, Option<Phase>)] = &[(Confining, None), (Confined, None), (Starting, None), (Running, None)];
/// Once there is a machine.
const STARTED: &[(Phase, Option<Phase>)] = &[(Starting, None), (Running, None)];

const TO_VMM: [Row; 5] = [
    ("Prepare", &[(New, Some(Confining))]),
    ("Start", &[(Confined, Some(Starting))]),
    ("PowerButton", STARTED),
    ("Beat", STARTED),
    ("Stop", ANY_TIME),
];

const ENDS: &[(Phase, Option<Phase>)] =
    &[(Confining, Some(Ended)), (Confined, Some(Ended)), (Starting, Some(Ended)), (Running, Some(Ended))];

const FROM_VMM: [Row; 7] = [
    ("Ready", &[(Confining, Some(Confined))]),
    ("Started", &[(Starting, Some(Running))]),
    ("Rebooted", &[(Running, None)]),
    ("Device", STARTED),
    ("Alive", STARTED),
    ("Log", ANY_TIME),
    ("Ended", ENDS),
];

fn row_to(message: &ToVmm) -> &'static Row {
    match message {
        ToVmm::Prepare(_) => &TO_VMM[0],
        ToVmm::Start(_) => &TO_VMM[1],
        ToVmm::PowerButton => &TO_VMM[2],
        ToVmm::Beat(_) => &TO_VMM[3],
        ToVmm::Stop => &TO_VMM[4],
    }
}

fn row_from(message: &FromVmm) -> &'static Row {
    match message {
        FromVmm::Ready { .. } => &FROM_VMM[0],
        FromVmm::Started { .. } => &FROM_VMM[1],
        FromVmm::Rebooted { .. } => &FROM_VMM[2],
        FromVmm::Device { .. } => &FROM_VMM[3],
        FromVmm::Alive(_) => &FROM_VMM[4],
        FromVmm::Log(_) => &FROM_VMM[5],
        FromVmm::Ended { .. } => &FROM_VMM[6],
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

    /// A message from the broker: an error if it is not permitted now.
    pub fn to_vmm(&mut self, message: &ToVmm) -> Result<(), ChannelError> {
        self.step(row_to(message))
    }

    /// A message from the vmm: an error if it is not permitted now.
    pub fn from_vmm(&mut self, message: &FromVmm) -> Result<(), ChannelError> {
        self.step(row_from(message))
    }

    fn step(&mut self, (message, states): &Row) -> Result<(), ChannelError> {
        match states.iter().find(|(phase, _)| *phase == self.0) {
            Some((_, next)) => {
                self.0 = next.unwrap_or(self.0);
                Ok(())
            }
            None => Err(ChannelError::OutOfState { message, state: self.0.name() }),
        }
    }
}
