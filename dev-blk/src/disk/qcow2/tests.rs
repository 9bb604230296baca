//! Images that somebody made to do harm. Whatever is in them, opening and using them ends, in an error perhaps.

use std::io::Write;

use vm_memory::{GuestAddress, GuestMemoryMmap, Permissions};

use super::super::open::{OpenError, Options, Source, open};
use super::super::{Cache, Disk, Format};
use super::*;
use crate::request::Segment;

const CLUSTER: usize = 512;
const DISK: u64 = 64 << 10;

/// A small image with the smallest clusters: header, refcount table, refcount block, L1 table, an L2 table, one cluster of data.
fn image() -> Vec<u8> {
    let mut image = vec![0; 6 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &9u32.to_be_bytes());
    put(24, &DISK.to_be_bytes());
    put(36, &2u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1u32.to_be_bytes());
    put(96, &4u32.to_be_bytes());
    put(100, &104u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    (0..6).for_each(|cluster| put(2 * CLUSTER + 2 * cluster, &1u16.to_be_bytes()));
    put(3 * CLUSTER, &((1 << 63) | (4 * CLUSTER as u64)).to_be_bytes());
    put(4 * CLUSTER, &((1 << 63) | (5 * CLUSTER as u64)).to_be_bytes());
    put(5 * CLUSTER, &[0xa5; CLUSTER]);
    image
}

/// xorshift64: the same images on every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    /// Overwrites a field of one of the tables, most often the header, with what is likely to hurt.
    fn harm(&mut self, image: &mut [u8]) {
        let base = CLUSTER * self.below(5) as usize * usize::from(self.below(2) == 0);
        let width = [1, 2, 4, 8][self.below(4) as usize];
        let at = base + self.below(if base == 0 { 136 } else { 64 }) as usize / width * width;
        let value = match self.below(6) {
            0 => u64::MAX,
            1 => self.below(16),
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => (CLUSTER as u64 * self.below(8)) | (self.below(2) << 63) | (self.below(2) << 62),
            _ => self.below(u64::MAX),
        };
        image[at..at + width].copy_from_slice(&value.to_be_bytes()[8 - width..]);
    }
}

fn open_bytes(bytes: &[u8]) -> Result<Disk, OpenError> {
    let mut file = memfd::MemfdOptions::default().create("image").unwrap().into_file();
    file.write_all(bytes).unwrap();
    let source = Source::Descriptor(file.into());
    open(Options { source, format: Format::Qcow2, cache: Cache::Unsafe, read_only: false, allow_backing: false })
}

/// Reads, writes, zeroes and discards all over the disk.
fn use_all(disk: &Disk, dice: &mut Dice) {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    let buffers = |bytes: u64| {
        let segment = Segment { address: GuestAddress(0), length: bytes as u32 };
        Buffers::gather(&memory, &[segment], Permissions::ReadWrite).unwrap()
    };
    let mut scratch = Scratch::default();
    let sectors = disk.capacity();
    for _ in 0..16 {
        let count = (1 + dice.below(8)).min(sectors);
        let last = sectors - count;
        let sector = if dice.below(2) == 0 { dice.below(128).min(last) } else { last - dice.below(128).min(last) };
        let (offset, length) = (sector * 512, count * 512);
        // Errors are answers.
        let _ = match dice.below(4) {
            0 => disk.read(&buffers(length), offset, &mut scratch),
            1 => disk.write(&buffers(length), offset, &mut scratch),
            2 => disk.write_zeroes(offset, length, true, &mut scratch),
            _ => disk.discard(offset, length),
        };
    }
}

#[test]
fn images_made_to_do_harm_end_in_errors() {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let disk = open_bytes(&image()).expect("the image without harm");
    assert_eq!(disk.capacity(), DISK / 512);
    use_all(&disk, &mut dice);
    let mut opened = 0;
    for _ in 0..6000 {
        let mut bytes = image();
        for _ in 0..=dice.below(3) {
            dice.harm(&mut bytes);
        }
        if let Ok(disk) = open_bytes(&bytes) {
            opened += 1;
            use_all(&disk, &mut dice);
        }
    }
    assert!((1000..5500).contains(&opened), "{opened} of 6000 were opened");
}

/// imago's search for a free cluster would never end.
#[test]
fn an_image_without_a_refcount_of_its_header_is_refused() {
    let without: [(usize, u64); 3] = [(CLUSTER, 0), (48, 1 << 40), (56, 0)];
    for (place, value) in without {
        let mut bytes = image();
        bytes[place..place + 8].copy_from_slice(&value.to_be_bytes());
        let refused = open_bytes(&bytes).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("qemu-img check"), "{refused}");
    }
}

/// An image names its backing file, and whoever made the image may have chosen one that never ends, or never begins.
#[test]
fn a_backing_file_that_is_no_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut bytes = image();
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    // The name, its place and length, and the header extension that states the format.
    put(8, &200u64.to_be_bytes());
    put(16, &4u32.to_be_bytes());
    put(104, &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 3]);
    put(112, b"raw");
    put(200, b"fifo");
    let path = directory.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    let (opened, result) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let source = Source::Path(path);
        let options =
            Options { source, format: Format::Qcow2, cache: Cache::Unsafe, read_only: true, allow_backing: true };
        opened.send(open(options).map(drop).map_err(|error| error.to_string()))
    });
    let answer = result.recv_timeout(std::time::Duration::from_secs(60)).expect("it waits for the other end");
    assert!(answer.unwrap_err().contains("neither a regular file"));
}
