use std::fs::File;
use std::os::fd::AsRawFd;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::frame::encode;

/// A message that says how many descriptors come with it, and carries some bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Parcel {
    descriptors: u8,
    words: Vec<String>,
}

impl Message for Parcel {
    fn descriptors(&self) -> usize {
        self.descriptors.into()
    }
    fn validate(&self) -> Result<(), String> {
        if self.words.iter().any(|w| w == "forbidden") { Err("a forbidden word".into()) } else { Ok(()) }
    }
}

type End = Channel<Parcel, Parcel>;

fn ends() -> (End, End) {
    let (ours, theirs) = End::pair().unwrap();
    (ours, End::new(theirs))
}

fn parcel(descriptors: u8) -> Parcel {
    Parcel { descriptors, words: vec!["a".into(), "bc".into()] }
}

/// Sends raw bytes, as a peer that was taken over can.
fn raw(end: &End, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    scm::send(end.as_fd(), bytes, descriptors).unwrap();
}

/// How many descriptors of this process lead to the same file as `file`.
fn copies_of(file: &File) -> usize {
    let link = |fd: &str| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok();
    let target = link(&file.as_raw_fd().to_string());
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.filter(|e| link(&e.as_ref().unwrap().file_name().to_string_lossy()) == target).count()
}

#[test]
fn messages_arrive_in_order_with_their_descriptors() {
    let (a, b) = ends();
    let file = tempfile("descriptors");
    a.send(&parcel(2), &[file.as_fd(), a.as_fd()]).unwrap();
    a.send(&parcel(0), &[]).unwrap();
    let (message, descriptors) = b.receive().unwrap();
    assert_eq!((message, descriptors.len()), (parcel(2), 2));
    assert_eq!(copies_of(&file), 2, "the one that was sent is the same file");
    assert_eq!(b.try_receive().unwrap().unwrap().0, parcel(0));
    assert!(b.try_receive().unwrap().is_none());
    drop((a, descriptors));
    assert!(matches!(b.receive(), Err(ChannelError::Closed)));
}

/// A file of its own, under a name that no other test uses.
fn tempfile(name: &'static str) -> File {
    crate::shm::sealed(name, 4096).unwrap()
}

#[test]
fn descriptors_that_do_not_agree_are_closed() {
    let file = tempfile("disagreeing");
    for (says, comes) in [(0, 1), (1, 0), (2, 1), (1, 2), (0, scm::MAX_DESCRIPTORS)] {
        let (a, b) = ends();
        raw(&a, &encode(&parcel(says), 0).unwrap(), &vec![file.as_fd(); comes]);
        match b.receive() {
            Err(ChannelError::Descriptors { expected, found }) => assert_eq!((expected, found), (says.into(), comes)),
            other => panic!("{says} said, {comes} sent: {other:?}"),
        }
        assert_eq!(copies_of(&file), 1, "{says} said, {comes} sent");
    }
}

#[test]
fn more_descriptors_than_there_is_room_for_are_closed() {
    let (a, b) = ends();
    let file = tempfile("too-many");
    let many = vec![file.as_raw_fd(); scm::MAX_DESCRIPTORS + 9];
    let control = [nix::sys::socket::ControlMessage::ScmRights(&many)];
    let packet = encode(&parcel(scm::MAX_DESCRIPTORS as u8), 0).unwrap();
    let vector = [std::io::IoSlice::new(&packet)];
    nix::sys::socket::sendmsg::<()>(
        a.as_fd().as_raw_fd(),
        &vector,
        &control,
        nix::sys::socket::MsgFlags::empty(),
        None,
    )
    .unwrap();
    assert!(matches!(b.receive(), Err(ChannelError::Descriptors { .. })));
    assert_eq!(copies_of(&file), 1);
}

#[test]
fn repeated_and_skipped_packets_end_the_conversation() {
    let (a, b) = ends();
    let first = encode(&parcel(0), 0).unwrap();
    raw(&a, &first, &[]);
    raw(&a, &first, &[]);
    b.receive().unwrap();
    assert!(matches!(b.receive(), Err(ChannelError::Frame(FrameError::Sequence { expected: 1, found: 0 }))));
    let (a, b) = ends();
    raw(&a, &encode(&parcel(0), 1).unwrap(), &[]);
    assert!(matches!(b.receive(), Err(ChannelError::Frame(FrameError::Sequence { expected: 0, found: 1 }))));
}

#[test]
fn oversized_packets_and_other_versions_are_refused() {
    let (a, b) = ends();
    raw(&a, &vec![0; MAX_PACKET + 100], &[]);
    assert!(matches!(b.receive(), Err(ChannelError::Frame(FrameError::Size(_)))));
    let long = Parcel { descriptors: 0, words: vec!["x".repeat(MAX_PACKET)] };
    assert!(matches!(a.send(&long, &[]), Err(ChannelError::Frame(FrameError::Size(_)))));
    let (a, b) = ends();
    let mut other = encode(&parcel(0), 0).unwrap();
    other[0] ^= 1;
    raw(&a, &other, &[]);
    assert!(matches!(b.receive(), Err(ChannelError::Frame(FrameError::Version(_)))));
    let (a, b) = ends();
    let nonsense = Parcel { descriptors: 0, words: vec!["forbidden".into()] };
    a.send(&nonsense, &[]).unwrap();
    assert!(matches!(b.receive(), Err(ChannelError::Invalid(_))));
}

#[test]
fn a_peer_that_does_not_read_fills_only_its_own_channel() {
    let (a, _b) = ends();
    let full = (0..100_000).find_map(|_| a.send(&parcel(0), &[]).err());
    assert!(matches!(full, Some(ChannelError::Full)), "{full:?}");
}

proptest! {
    /// Whatever arrives, the answer is a message or an error, and a message only if it is exactly one.
    #[test]
    fn noise_is_an_error(bytes in proptest::collection::vec(any::<u8>(), 1..300), sequence in any::<u32>()) {
        if let Ok(message) = frame::decode::<Parcel>(&bytes, sequence) {
            prop_assert_eq!(&encode(&message, sequence).unwrap(), &bytes);
        }
        let (a, b) = ends();
        raw(&a, &bytes, &[]);
        if let Ok((message, descriptors)) = b.receive() {
            prop_assert_eq!(encode(&message, 0).unwrap(), bytes);
            prop_assert!(descriptors.is_empty());
        }
    }

    /// A packet that was cut, lengthened or altered never passes for the one that was sent.
    #[test]
    fn altered_packets_are_not_what_was_sent(
        words in proptest::collection::vec(".{0,20}", 0..5),
        place in any::<proptest::sample::Index>(),
        bit in 0u8..8,
        extra in proptest::collection::vec(any::<u8>(), 1..8),
    ) {
        let message = Parcel { descriptors: 0, words };
        let whole = encode(&message, 7).unwrap();
        prop_assert_eq!(&frame::decode::<Parcel>(&whole, 7).unwrap(), &message);
        prop_assert!(frame::decode::<Parcel>(&whole[..place.index(whole.len())], 7).is_err());
        let longer: Vec<u8> = whole.iter().chain(&extra).copied().collect();
        prop_assert!(matches!(frame::decode::<Parcel>(&longer, 7), Err(FrameError::Trailing(_))));
        let mut flipped = whole.clone();
        flipped[place.index(whole.len())] ^= 1 << bit;
        prop_assert_ne!(frame::decode::<Parcel>(&flipped, 7).ok(), Some(message));
    }
}
