//! A confined process's end of the conversation with the broker. Every message either way passes the table of
//! [`crate::control`]; one that is not permitted is an error, and an error ends the process.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use crate::channel::{Channel, ChannelError, Delivery, Message};
use crate::control::{Conversation, Permitted};

/// Shared by all threads of the process. Says `Out`, hears `In`.
#[derive(Debug)]
pub struct Uplink<Out, In> {
    channel: Channel<Out, In>,
    conversation: Mutex<Conversation>,
}

impl<Out: Message + Permitted, In: Message + Permitted> Uplink<Out, In> {
    /// Over a socket on which nothing was said yet.
    pub fn new(socket: OwnedFd) -> Self {
        Self { channel: Channel::new(socket), conversation: Mutex::default() }
    }

    /// Says something, without blocking. The lock is held until it is on its way: messages leave in the order in which
    /// they were permitted.
    pub fn say(&self, message: &Out) -> Result<(), ChannelError> {
        let mut conversation = self.conversation.lock().unwrap_or_else(PoisonError::into_inner);
        let mut after = *conversation;
        after.pass(message)?;
        self.channel.send(message, &[])?;
        *conversation = after;
        Ok(())
    }

    /// Waits for what the broker says next.
    pub fn wait(&self) -> Result<Delivery<In>, ChannelError> {
        self.permitted(self.channel.receive()?)
    }

    /// What the broker has said, if anything.
    pub fn poll(&self) -> Result<Option<Delivery<In>>, ChannelError> {
        self.channel.try_receive()?.map(|delivery| self.permitted(delivery)).transpose()
    }

    fn permitted(&self, delivery: Delivery<In>) -> Result<Delivery<In>, ChannelError> {
        self.conversation.lock().unwrap_or_else(PoisonError::into_inner).pass(&delivery.0)?;
        Ok(delivery)
    }
}

impl<Out, In> AsFd for Uplink<Out, In> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{FromVmm, Prepare, ToVmm};

    #[test]
    fn what_is_not_permitted_is_not_said_and_not_obeyed() {
        let (broker, socket) = Channel::<ToVmm, FromVmm>::pair().unwrap();
        let uplink = Uplink::<FromVmm, ToVmm>::new(socket);
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
