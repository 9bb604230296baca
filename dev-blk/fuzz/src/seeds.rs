//! Writes the first inputs of both targets, one for each kind of request and of mistake, into the directories given.
//!
//! `cargo run --bin seeds -- seeds/request seeds/queue`

use std::{env, fs, io, path::PathBuf};

use guest::{AVAIL, FREE};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const HEADER: u64 = FREE;
const STATUS: u64 = FREE + 0x20;
const TABLE: u64 = FREE + 0x40;
const DATA: u64 = 0x600;

/// A descriptor: address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

struct Image(Vec<u8>);

impl Image {
    /// A guest that has made `heads` available, with one request header.
    fn new(choice: u8, kind: u32, sector: u64, heads: &[u16]) -> Self {
        let mut image = Self(vec![0; 0xa00]);
        image.0[0] = choice;
        image.put(HEADER, &kind.to_le_bytes()).put(HEADER + 8, &sector.to_le_bytes());
        image.put(AVAIL + 2, &(heads.len() as u16).to_le_bytes());
        for (slot, head) in heads.iter().enumerate() {
            image.put(AVAIL + 4 + slot as u64 * 2, &head.to_le_bytes());
        }
        image
    }

    fn put(&mut self, at: u64, bytes: &[u8]) -> &mut Self {
        let at = at as usize + 1;
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn table(mut self, at: u64, descriptors: &[Descriptor]) -> Self {
        for (slot, (address, length, flags, next)) in descriptors.iter().enumerate() {
            let at = at + slot as u64 * 16;
            self.put(at, &address.to_le_bytes()).put(at + 8, &length.to_le_bytes());
            self.put(at + 12, &flags.to_le_bytes()).put(at + 14, &next.to_le_bytes());
        }
        self
    }

    /// One range of a discard or write-zeroes request.
    fn range(mut self, sector: u64, sectors: u32, flags: u32) -> Self {
        self.put(DATA, &sector.to_le_bytes()).put(DATA + 8, &sectors.to_le_bytes()).put(DATA + 12, &flags.to_le_bytes());
        self
    }
}

fn main() -> io::Result<()> {
    let chain = |data: u32, flags: u16| {
        vec![(HEADER, 16, NEXT, 1), (DATA, data, NEXT | flags, 2), (STATUS, 1, WRITE, 0)]
    };
    let short = [(HEADER, 16, NEXT, 1), (STATUS, 1, WRITE, 0)];
    let split = [
        (HEADER, 7, NEXT, 1),
        (HEADER + 7, 9, NEXT, 2),
        (DATA, 512, NEXT | WRITE, 3),
        (DATA + 512, 513, WRITE, 0),
    ];
    let seeds = [
        ("read", Image::new(0, 0, 3, &[0]).table(0, &chain(1024, WRITE))),
        ("read-event-index", Image::new(2, 0, 3, &[0, 0, 0]).table(0, &chain(512, WRITE))),
        ("write", Image::new(0, 1, 9, &[0]).table(0, &chain(512, 0))),
        ("write-read-only", Image::new(1, 1, 9, &[0]).table(0, &chain(512, 0))),
        ("flush", Image::new(0, 4, 0, &[0]).table(0, &short)),
        ("identify", Image::new(0, 8, 0, &[0]).table(0, &chain(20, WRITE))),
        ("discard", Image::new(0, 11, 0, &[0]).table(0, &chain(16, 0)).range(5, 20, 0)),
        ("zeroes", Image::new(0, 13, 0, &[0]).table(0, &chain(16, 0)).range(5, 20, 1)),
        ("zeroes-outside", Image::new(0, 13, 0, &[0]).table(0, &chain(16, 0)).range(u64::MAX, 2, 0)),
        ("unknown", Image::new(0, 99, 0, &[0]).table(0, &short)),
        ("split", Image::new(0, 0, 1, &[0]).table(0, &split)),
        ("indirect", Image::new(0, 0, 1, &[0]).table(0, &[(TABLE, 48, INDIRECT, 0)]).table(TABLE, &chain(512, WRITE))),
        ("into-the-ring", Image::new(0, 0, 1, &[0]).table(0, &[(HEADER, 16, NEXT, 1), (AVAIL, 513, WRITE, 0)])),
        ("loop", Image::new(0, 0, 1, &[0]).table(0, &[(HEADER, 16, NEXT, 1), (DATA, 512, NEXT | WRITE, 0)])),
        ("no-status", Image::new(0, 4, 0, &[0]).table(0, &[(HEADER, 16, 0, 0)])),
        ("bad-head", Image::new(0, 4, 0, &[16])),
    ];
    for directory in env::args_os().skip(1).map(PathBuf::from) {
        fs::create_dir_all(&directory)?;
        for (name, image) in &seeds {
            fs::write(directory.join(name), &image.0)?;
        }
    }
    Ok(())
}
