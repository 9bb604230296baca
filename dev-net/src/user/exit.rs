//! The way out: asks the broker for flows, and waits for them.
//!
//! Sockets are watched edge-triggered, once for all: who reads and writes them remembers whether that may still lead to
//! something.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use ipc::flow::{self, Heard, Protocol, Request, Verdict};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::frame::Key;

/// What the channel to the broker is called among events; flows have their numbers.
const CHANNEL: u64 = u64::MAX;
/// Set in the name of a UDP flow.
const UDP: u64 = 1 << 32;
/// Events that are taken at once.
const EVENTS: usize = 64;

/// What may be done with a flow again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    pub readable: bool,
    pub writable: bool,
}

/// What happened.
#[derive(Debug)]
pub enum News {
    /// The broker has decided on request `id`.
    Answer(u32, Verdict, Option<OwnedFd>),
    /// Flow `id` has something.
    Ready(Protocol, u32, Ready),
}

/// See the module.
#[derive(Debug)]
pub struct Exit {
    channel: OwnedFd,
    epoll: Epoll,
    next: u32,
    /// The broker talks to us no more.
    closed: bool,
}

impl Exit {
    /// By this channel to the broker.
    pub fn new(channel: OwnedFd) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&channel, EpollEvent::new(EpollFlags::EPOLLIN, CHANNEL))?;
        Ok(Self { channel, epoll, next: 0, closed: false })
    }

    /// Asks for a flow: the number of the request, which will be the flow's. None if that cannot be asked now.
    pub fn ask(&mut self, protocol: Protocol, key: Key) -> Option<u32> {
        let id = self.next;
        flow::ask(self.channel.as_fd(), Request { id, protocol, port: key.port, to: key.to }).ok()?;
        self.next = self.next.wrapping_add(1);
        Some(id)
    }

    /// Watches the socket of flow `id`, until it is closed.
    pub fn watch(&self, protocol: Protocol, id: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        let name = u64::from(id) | if protocol == Protocol::Udp { UDP } else { 0 };
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        Ok(self.epoll.add(socket, EpollEvent::new(flags, name))?)
    }

    /// What has happened since, or some of it: then there is still more to be waited for.
    pub fn news(&mut self) -> Vec<News> {
        let mut events = [EpollEvent::empty(); EVENTS];
        // An error is EINTR: it is asked again.
        let count = self.epoll.wait(&mut events, EpollTimeout::ZERO).unwrap_or(0);
        let mut news = Vec::with_capacity(count);
        for event in &events[..count] {
            if event.data() == CHANNEL {
                self.hear(&mut news);
                continue;
            }
            let failed = event.events().intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
            let ready = |flags| failed || event.events().intersects(flags);
            let ready = Ready {
                readable: ready(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP),
                writable: ready(EpollFlags::EPOLLOUT),
            };
            let protocol = if event.data() & UDP == 0 { Protocol::Tcp } else { Protocol::Udp };
            news.push(News::Ready(protocol, event.data() as u32, ready));
        }
        news
    }

    fn hear(&mut self, news: &mut Vec<News>) {
        for _ in 0..EVENTS {
            match flow::next_answer(self.channel.as_fd()) {
                Heard::Some((id, verdict, socket)) => news.push(News::Answer(id, verdict, socket)),
                Heard::Nothing => return,
                Heard::Garbage | Heard::Closed => {
                    // There will be no more flows; those that there are go on.
                    if !std::mem::replace(&mut self.closed, true) {
                        tracing::warn!("the broker gives no more flows");
                        let _ = self.epoll.delete(&self.channel);
                    }
                    return;
                }
            }
        }
    }
}

impl AsFd for Exit {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
