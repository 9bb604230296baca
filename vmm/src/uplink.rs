//! The vmm's end of the conversation with the broker. Every message either way passes the table of
//! [`ipc::control`]; one that is not permitted is an error, and an error ends the machine.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use ipc::channel::{ChannelError, Delivery};
use ipc::control::{Conversation, FromVmm, ToVmm, VmmChannel};

/// Shared by all threads of the process.
#[derive(Debug)]
pub struct Uplink {
    channel: VmmChannel,
    conversation: Mutex<Conversation>,
}

impl Uplink {
    /// Over a socket on which nothing was said yet.
    pub fn new(socket: OwnedFd) -> Self {
        Self { channel: VmmChannel::new(socket), conversation: Mutex::default() }
    }

    /// Says something, without blocking. The lock is held until it is on its way: messages leave in the order in which
    /// they were permitted.
    pub fn say(&self, message: &FromVmm) -> Result<(), ChannelError> {
        let mut conversation = self.conversation.lock().unwrap_or_else(PoisonError::into_inner);
        let mut after = *conversation;
        after.from_vmm(message)?;
        self.channel.send(message, &[])?;
        *conversation = after;
        Ok(())
    }

    /// Waits for what the broker says next.
    pub fn wait(&self) -> Result<Delivery<ToVmm>, ChannelError> {
        self.permitted(self.channel.receive()?)
    }

    /// What the broker has said, if anything.
    pub fn poll(&self) -> Result<Option<Delivery<ToVmm>>, ChannelError> {
        self.channel.try_receive()?.map(|delivery| self.permitted(delivery)).transpose()
    }

    fn permitted(&self, delivery: Delivery<ToVmm>) -> Result<Delivery<ToVmm>, ChannelError> {
        self.conversation.lock().unwrap_or_else(PoisonError::into_inner).to_vmm(&delivery.0)?;
        Ok(delivery)
    }
}

impl AsFd for Uplink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipc::control::{BrokerChannel, Prepare};

    #[test]
    fn what_is_not_permitted_is_not_said_and_not_obeyed() {
        let (broker, socket) = BrokerChannel::pair().unwrap();
        let uplink = Uplink::new(socket);
        let ready = FromVmm::Ready { landlock_proved: true, missing: vec![] };
        assert!(matches!(uplink.say(&ready), Err(ChannelError::OutOfState { .. })));
        assert!(broker.try_receive().unwrap().is_none());
        broker.send(&ToVmm::Stop, &[]).unwrap();
        assert!(matches!(uplink.wait(), Err(ChannelError::OutOfState { .. })));
        let prepare = Prepare { memory: 1 << 20, engine: String::new(), cpu: String::new(), log_filter: String::new() };
        broker.send(&ToVmm::Prepare(prepare), &[]).unwrap();
        uplink.wait().unwrap();
        uplink.say(&ready).unwrap();
        assert_eq!(broker.receive().unwrap().0, ready);
        assert!(matches!(uplink.say(&ready), Err(ChannelError::OutOfState { .. })), "twice");
    }
}
