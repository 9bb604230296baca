//! One vhost-user connection of a back end (QEMU's specification, docs/interop/vhost-user.rst). Memory is reached by
//! pread and pwrite on the region's file, so there is no mapping to get wrong.

use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Requests of the front end.
pub mod request {
    #![allow(missing_docs)]
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
}

/// Protocol features: MQ, REPLY_ACK, BACKEND_REQ and CONFIG.
const PROTOCOL_FEATURES: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
const BACKEND_CONFIG_CHANGE: u32 = 2;
/// How long an idle device waits before it is asked what it would like to do.
const IDLE_MS: u16 = 5;

/// What a device does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// What the protocol says.
    Answer,
    /// Half an answer, then nothing, but the socket stays open.
    Stall,
    /// Hangs up.
    HangUp,
    /// Answers, then hangs up.
    Leave,
    /// An answer of garbage.
    Garbage,
}

/// The device behind a connection.
pub trait Device {
    /// Virtio feature bits, with VHOST_USER_F_PROTOCOL_FEATURES.
    fn features(&self) -> u64;
    /// Configuration space.
    fn config(&self) -> Vec<u8>;
    /// Queues that it says it has; the first is all that it serves.
    fn queues(&self) -> u64 {
        1
    }
    /// A message came.
    fn message(&mut self, _request: u32) -> Reaction {
        Reaction::Answer
    }
    /// The queue was kicked, or started.
    fn kicked(&mut self, session: &mut Session);
    /// Nothing came for a while. False hangs up.
    fn idle(&mut self, _session: &mut Session) -> bool {
        true
    }
}

/// A connection with what it has been told. There is one queue.
pub struct Session {
    stream: UnixStream,
    /// The memory table's only file.
    pub memory: Option<File>,
    user: u64,
    /// Entries of the queue.
    pub size: u16,
    descriptors: u64,
    avail: u64,
    /// Place of the used ring in the memory.
    pub used: u64,
    next_avail: u16,
    next_used: u16,
    /// What kicks us.
    pub kick: Option<File>,
    /// What we call by.
    pub call: Option<File>,
    requests: Option<UnixStream>,
    /// The queue runs.
    pub enabled: bool,
    /// Features that the front end chose.
    pub features: u64,
}

/// A chain that was taken: its id, readable and writable parts.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Number of its first descriptor.
    pub id: u16,
    /// Places and lengths.
    pub readable: Vec<(u64, u32)>,
    /// See `readable`.
    pub writable: Vec<(u64, u32)>,
}

/// Serves `device` on `stream` until either side hangs up.
pub fn serve(stream: UnixStream, device: &mut dyn Device) -> io::Result<()> {
    let mut session = Session {
        stream,
        memory: None,
        user: 0,
        size: 0,
        descriptors: 0,
        avail: 0,
        used: 0,
        next_avail: 0,
        next_used: 0,
        kick: None,
        call: None,
        requests: None,
        enabled: false,
        features: 0,
    };
    while session.turn(device)? {}
    Ok(())
}

impl Session {
    fn turn(&mut self, device: &mut dyn Device) -> io::Result<bool> {
        let mut fds = vec![PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        if let Some(kick) = self.kick.as_ref().filter(|_| self.enabled) {
            fds.push(PollFd::new(kick.as_fd(), PollFlags::POLLIN));
        }
        let count = poll(&mut fds, PollTimeout::from(IDLE_MS))?;
        let ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        if count == 0 {
            return Ok(device.idle(self));
        }
        if ready.get(1) == Some(&true) {
            let mut eight = [0; 8];
            if let Some(kick) = &mut self.kick {
                // It may have been taken already.
                let _ = kick.read(&mut eight);
            }
            device.kicked(self);
        }
        if ready[0] { self.message(device) } else { Ok(true) }
    }

    /// Receives one message with its descriptors, and reacts. False ends the connection.
    fn message(&mut self, device: &mut dyn Device) -> io::Result<bool> {
        let mut header = [0; 12];
        let (count, files) = receive(&self.stream, &mut header)?;
        if count == 0 {
            return Ok(false);
        }
        self.stream.read_exact(&mut header[count..])?;
        let word = |i: usize| u32::from_le_bytes([header[i], header[i + 1], header[i + 2], header[i + 3]]);
        let (request, flags, size) = (word(0), word(4), word(8));
        let mut body = vec![0; size.min(4096) as usize];
        self.stream.read_exact(&mut body)?;
        let reaction = device.message(request);
        let answer = self.take(request, &body, files, device);
        match reaction {
            Reaction::HangUp => return Ok(false),
            Reaction::Stall => {
                self.stream.write_all(&request.to_le_bytes())?;
                // Until the front end loses patience.
                let mut rest = Vec::new();
                let _ = self.stream.read_to_end(&mut rest);
                return Ok(false);
            }
            Reaction::Garbage => self.stream.write_all(&[0xa5; 64])?,
            Reaction::Answer | Reaction::Leave => {
                let answer = answer.or_else(|| (flags & NEED_REPLY != 0).then(|| vec![0; 8]));
                if let Some(answer) = answer {
                    self.send(request, &answer)?;
                }
            }
        }
        if request == request::SET_VRING_ENABLE {
            device.kicked(self);
        }
        Ok(reaction != Reaction::Leave)
    }

    fn send(&mut self, request: u32, body: &[u8]) -> io::Result<()> {
        let words = [request, VERSION | REPLY, body.len() as u32];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend(body);
        self.stream.write_all(&bytes)
    }

    /// Carries a message out; what it answers, if it has an answer of its own.
    fn take(&mut self, request: u32, body: &[u8], files: Vec<File>, device: &dyn Device) -> Option<Vec<u8>> {
        use request::*;
        let long = |at: usize| body.get(at..at + 8).map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap_or_default()));
        let file = files.into_iter().next();
        let answer = |value: u64| Some(value.to_le_bytes().to_vec());
        match request {
            GET_FEATURES => return answer(device.features()),
            SET_FEATURES => self.features = long(0),
            GET_PROTOCOL_FEATURES => return answer(PROTOCOL_FEATURES),
            GET_QUEUE_NUM => return answer(device.queues()),
            // One region: count, padding, then guest address, size, user address, file offset.
            SET_MEM_TABLE => (self.memory, self.user) = (file, long(24)),
            SET_VRING_NUM => self.size = long(0).wrapping_shr(32) as u16,
            SET_VRING_BASE => (self.next_avail, self.next_used) = ((long(0) >> 32) as u16, (long(0) >> 32) as u16),
            SET_VRING_ADDR => {
                let place = |at| long(at).wrapping_sub(self.user);
                (self.descriptors, self.used, self.avail) = (place(8), place(16), place(24));
            }
            SET_VRING_KICK => self.kick = file,
            SET_VRING_CALL => self.call = file,
            SET_VRING_ENABLE => self.enabled = long(0) >> 32 != 0,
            SET_BACKEND_REQ_FD => self.requests = file.map(|file| UnixStream::from(OwnedFd::from(file))),
            GET_VRING_BASE => {
                (self.enabled, self.kick) = (false, None);
                return answer(u64::from(self.next_avail) << 32);
            }
            GET_CONFIG => {
                let mut config = device.config();
                config.resize(body.len().saturating_sub(12), 0);
                return Some([&body[..12.min(body.len())], &config].concat());
            }
            _ => {}
        }
        None
    }

    /// Announces a change of the configuration.
    pub fn announce(&mut self) {
        let words = [BACKEND_CONFIG_CHANGE, VERSION, 0];
        let bytes: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        if let Some(requests) = &mut self.requests {
            // A front end that is gone is noticed on the main socket.
            let _ = requests.write_all(&bytes);
        }
    }

    /// Reads the shared memory.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        if let Some(memory) = &self.memory {
            // What lies outside reads as zero.
            let _ = memory.read_exact_at(&mut bytes, at);
        }
        bytes
    }

    /// Writes the shared memory. Its seals keep it from growing.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        if let Some(memory) = &self.memory {
            let _ = memory.write_all_at(bytes, at);
        }
    }

    /// Takes the next chain.
    pub fn take_chain(&mut self) -> Option<Taken> {
        let index = u16::from_le_bytes(self.read(self.avail + 2));
        if !self.enabled || self.size == 0 || index == self.next_avail {
            return None;
        }
        let id = u16::from_le_bytes(self.read(self.avail + 4 + 2 * u64::from(self.next_avail % self.size)));
        self.next_avail = self.next_avail.wrapping_add(1);
        let mut taken = Taken { id, readable: Vec::new(), writable: Vec::new() };
        let mut at = id;
        for _ in 0..self.size {
            let word = u128::from_le_bytes(self.read(self.descriptors + 16 * u64::from(at)));
            let (part, flags) = ((word as u64, (word >> 64) as u32), (word >> 96) as u16);
            if flags & 2 != 0 {
                taken.writable.push(part)
            } else {
                taken.readable.push(part)
            }
            if flags & 1 == 0 {
                break;
            }
            at = (word >> 112) as u16;
        }
        Some(taken)
    }

    /// Puts an element into the used ring, shows it, and calls.
    pub fn complete(&mut self, id: u32, length: u32) {
        let element = u64::from(id) | u64::from(length) << 32;
        let slot = u64::from(self.next_used % self.size.max(1));
        self.write(self.used + 4 + 8 * slot, &element.to_le_bytes());
        self.next_used = self.next_used.wrapping_add(1);
        self.write(self.used + 2, &self.next_used.to_le_bytes());
        self.ring();
    }

    /// Calls, unless the counter is full, which is a call, too, and could block whoever made the descriptor blocking.
    pub fn ring(&mut self) {
        let Some(call) = &mut self.call else { return };
        let mut room = [PollFd::new(call.as_fd(), PollFlags::POLLOUT)];
        if poll(&mut room, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            let _ = call.write(&1u64.to_ne_bytes());
        }
    }
}

/// Receives up to `to.len()` bytes and the descriptors that come along.
fn receive(stream: &UnixStream, to: &mut [u8]) -> io::Result<(usize, Vec<File>)> {
    let mut space = nix::cmsg_space!([std::os::fd::RawFd; 8]);
    let mut slices = [IoSliceMut::new(to)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            files.extend(numbers.into_iter().map(owned));
        }
    }
    Ok((message.bytes, files))
}

/// Takes over a descriptor that the kernel just put into our table.
#[allow(unsafe_code)]
fn owned(number: std::os::fd::RawFd) -> File {
    // SAFETY: SCM_RIGHTS made the descriptor for this process, and nobody else knows its number.
    unsafe { File::from_raw_fd(number) }
}
