//! Which request crashes the process behind a device: the one table of the hunt.
//!
//! A process that ends by its own fault leaves suspects, all the requests that it had. Its successors are given these one at
//! a time, in their old order, and nothing new, until none is left. One that comes back is cleared. One that was the only
//! one out when a process ended by its own fault, twice, is a *poison request*: it is convicted, and never given to a
//! process again. So each poison request costs two processes, and the first death one more, however many requests are out.
//!
//! | a connection ends | by the process's fault | otherwise |
//! |---|---|---|
//! | several requests were out | all of them are suspects | nothing changes |
//! | one was out | it is one death nearer to its conviction | nothing changes |
//! | none was, or no queue ran yet | nothing changes | nothing changes |
//!
//! Requests that crash their process only together are thereby carried out, one after the other. The order is free: no
//! request that is out waits for another, and a flush is only for writes that were completed before it was submitted
//! (virtio 1.2, §5.2.6).
//!
//! Whose fault an end was is the broker's to say, and it says it later. Pure state: no device, no queue, no time.

use std::collections::VecDeque;

/// Deaths with nothing else out that convict.
const DEATHS: u8 = 2;

/// A request that is out: its queue and its chain's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id {
    /// Number of the queue.
    pub queue: usize,
    /// Number of the chain in it.
    pub chain: u16,
}

/// A convicted request, and among how many it was found.
pub type Convict = (Id, u16);

/// See the module.
#[derive(Debug, Default)]
pub struct Hunt {
    /// With the deaths at which each was the only one out. The first is on trial.
    suspects: VecDeque<(Id, u8)>,
    /// What was out when the last connection ended, until it is known whose fault that was.
    last: Vec<Id>,
    /// Suspects at the beginning.
    among: u16,
    convicts: Vec<Convict>,
}

impl Hunt {
    /// A connection ended, with these requests out on queues that ran.
    pub fn ended(&mut self, out: Vec<Id>) {
        self.last = out;
    }

    /// Whose fault that was is known.
    pub fn judged(&mut self, fault: bool) {
        let out = std::mem::take(&mut self.last);
        if !fault || out.is_empty() {
            return;
        }
        if self.suspects.is_empty() {
            self.among = out.len() as u16;
            self.suspects = out.iter().map(|id| (*id, 0)).collect();
        }
        if let [only] = out[..]
            && let Some(at) = self.suspects.iter().position(|(id, _)| *id == only)
        {
            self.suspects[at].1 += 1;
            if self.suspects[at].1 >= DEATHS {
                self.suspects.remove(at);
                self.convicts.push((only, self.among));
            }
        }
    }

    /// A convict whose sentence is to be carried out.
    pub fn take_convict(&mut self) -> Option<Convict> {
        self.convicts.pop()
    }

    /// The only request that may be out; None while there is no hunt, when all may.
    pub fn on_trial(&self) -> Option<Id> {
        self.suspects.front().map(|(id, _)| *id)
    }

    /// Clears the suspects that are not `outstanding` any more.
    pub fn clear(&mut self, outstanding: impl Fn(Id) -> bool) {
        self.suspects.retain(|(id, _)| outstanding(*id));
    }

    /// The guest reset the device, or it was given up: what was out is nobody's any more.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests;
