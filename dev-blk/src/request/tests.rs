//! Requests as a driver may cut them, and everything that a driver must not do.

use virtio_queue::desc::{RawDescriptor, split::Descriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueOwnedT};
use vm_memory::GuestMemoryMmap;

use super::*;

const READ: u16 = 0;
const WRITE: u16 = 2;
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;
const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x11_0000;
const STATUS: u64 = 0x1f_0000;
const DISK: Limits = Limits { capacity: 100, read_only: false };

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap()
}

fn put_header(mem: &GuestMemoryMmap, kind: u32, sector: u64) {
    mem.write_obj(kind, GuestAddress(HEADER)).unwrap();
    mem.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
}

fn put_range(mem: &GuestMemoryMmap, index: u64, sector: u64, sectors: u32, flags: u32) {
    mem.write_obj(sector, GuestAddress(DATA + index * 16)).unwrap();
    mem.write_obj(sectors, GuestAddress(DATA + index * 16 + 8)).unwrap();
    mem.write_obj(flags, GuestAddress(DATA + index * 16 + 12)).unwrap();
}

/// What became of a request: operation, readable and writable bytes.
type Parsed = Result<(Result<Operation, u8>, u64, u64), Malformed>;

fn parse_with(mem: &GuestMemoryMmap, limits: Limits, descriptors: &[(u64, u32, u16)]) -> Parsed {
    let queue = MockSplitQueue::new(mem, 256);
    let raw: Vec<_> = descriptors.iter().map(|&(at, len, flags)| Descriptor::new(at, len, flags, 0).into()).collect();
    let chain = queue.build_desc_chain(&raw).unwrap();
    let mut parser = Parser::default();
    let request = parser.parse(mem, chain, limits)?;
    Ok((request.operation, total(request.readable), request.writable_bytes()))
}

fn parse(mem: &GuestMemoryMmap, descriptors: &[(u64, u32, u16)]) -> Parsed {
    parse_with(mem, DISK, descriptors)
}

const fn header() -> (u64, u32, u16) {
    (HEADER, 16, READ)
}

const fn status() -> (u64, u32, u16) {
    (STATUS, 1, WRITE)
}

#[test]
fn a_read_as_linux_sends_it() {
    let mem = memory();
    put_header(&mem, VIRTIO_BLK_T_IN, 3);
    let parsed = parse(&mem, &[header(), (DATA, 1024, WRITE), (DATA + 4096, 512, WRITE), status()]);
    assert_eq!(parsed, Ok((Ok(Operation::Read { offset: 1536 }), 0, 1536)));
}

#[test]
fn framing_is_the_drivers_choice() {
    let mem = memory();
    put_header(&mem, VIRTIO_BLK_T_OUT, 0);
    // The header in three parts, its last together with data; an empty descriptor among them.
    let parts = [(HEADER, 4, READ), (HEADER + 4, 0, READ), (HEADER + 4, 8, READ), (HEADER + 12, 4 + 512, READ)];
    assert_eq!(parse(&mem, &[&parts[..], &[status()]].concat()), Ok((Ok(Operation::Write { offset: 0 }), 512, 0)));
    put_header(&mem, VIRTIO_BLK_T_IN, 0);
    // Data and status in one, then an empty descriptor.
    let parsed = parse(&mem, &[header(), (DATA, 513, WRITE), (0, 0, WRITE)]);
    assert_eq!(parsed, Ok((Ok(Operation::Read { offset: 0 }), 0, 512)));
}

#[test]
fn transfers_stay_inside_the_disk() {
    let mem = memory();
    let read = |sector, bytes| {
        put_header(&mem, VIRTIO_BLK_T_IN, sector);
        parse(&mem, &[header(), (DATA, bytes, WRITE), status()]).unwrap().0
    };
    assert_eq!(read(99, 512), Ok(Operation::Read { offset: 99 * 512 }));
    assert_eq!(read(99, 1024), Err(IOERR));
    assert_eq!(read(100, 512), Err(IOERR));
    assert_eq!(read(u64::MAX, 512), Err(IOERR));
    assert_eq!(read(u64::MAX / 512 + 1, 512), Err(IOERR));
    assert_eq!(read(0, 511), Err(IOERR));
    assert_eq!(read(0, 513), Err(IOERR));
    assert_eq!(read(100, 0), Ok(Operation::Read { offset: 51_200 }));
    let vast = Limits { capacity: u64::MAX, read_only: false };
    put_header(&mem, VIRTIO_BLK_T_IN, u64::MAX - 1);
    assert_eq!(parse_with(&mem, vast, &[header(), (DATA, 512, WRITE), status()]).unwrap().0, Err(IOERR));
}

#[test]
fn more_data_than_advertised_is_refused() {
    let mem = memory();
    put_header(&mem, VIRTIO_BLK_T_IN, 0);
    let vast = Limits { capacity: 1 << 40, read_only: false };
    let most = MAX_DATA as u32;
    assert!(parse_with(&mem, vast, &[header(), (DATA, most, WRITE), status()]).unwrap().0.is_ok());
    assert_eq!(parse_with(&mem, vast, &[header(), (DATA, most + 512, WRITE), status()]).unwrap().0, Err(IOERR));
}

#[test]
fn a_read_only_disk_refuses_what_writes() {
    let mem = memory();
    let limits = Limits { read_only: true, ..DISK };
    for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
        put_header(&mem, kind, 0);
        assert_eq!(parse_with(&mem, limits, &[header(), (DATA, 512, READ), status()]).unwrap().0, Err(IOERR));
    }
    put_header(&mem, VIRTIO_BLK_T_FLUSH, 0);
    assert_eq!(parse_with(&mem, limits, &[header(), status()]).unwrap().0, Ok(Operation::Flush));
}

#[test]
fn ranges_are_checked_one_by_one() {
    let mem = memory();
    let ranged = |kind, count: u32| {
        put_header(&mem, kind, 0);
        parse(&mem, &[header(), (DATA, count * 16, READ), status()]).unwrap().0
    };
    let (discard, zeroes) = (VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES);
    put_range(&mem, 0, 0, 50, 0);
    put_range(&mem, 1, 50, 50, 0);
    assert_eq!(ranged(discard, 2), Ok(Operation::Discard));
    assert_eq!(ranged(zeroes, 2), Ok(Operation::WriteZeroes));
    assert_eq!(ranged(zeroes, 0), Err(IOERR));
    put_range(&mem, 1, 50, 50, FLAG_UNMAP);
    assert_eq!(ranged(zeroes, 2), Ok(Operation::WriteZeroes));
    assert_eq!(ranged(discard, 2), Err(UNSUPP));
    put_range(&mem, 1, 50, 50, 2);
    assert_eq!(ranged(zeroes, 2), Err(UNSUPP));
    put_range(&mem, 1, 50, 51, 0);
    assert_eq!(ranged(zeroes, 2), Err(IOERR));
    put_range(&mem, 1, u64::MAX, 1, 0);
    assert_eq!(ranged(discard, 2), Err(IOERR));
    put_header(&mem, discard, 0);
    assert_eq!(parse(&mem, &[header(), (DATA, 17, READ), status()]).unwrap().0, Err(IOERR));
    let all = (MAX_RANGES as u32 + 1) * 16;
    assert_eq!(parse(&mem, &[header(), (DATA, all, READ), status()]).unwrap().0, Err(IOERR));
}

#[test]
fn ranges_beyond_the_advertised_length_are_refused() {
    let mem = memory();
    let vast = Limits { capacity: 1 << 40, read_only: false };
    for (kind, most) in
        [(VIRTIO_BLK_T_DISCARD, MAX_DISCARD_SECTORS), (VIRTIO_BLK_T_WRITE_ZEROES, MAX_WRITE_ZEROES_SECTORS)]
    {
        put_header(&mem, kind, 0);
        put_range(&mem, 0, 0, most, 0);
        assert!(parse_with(&mem, vast, &[header(), (DATA, 16, READ), status()]).unwrap().0.is_ok());
        put_range(&mem, 0, 0, most + 1, 0);
        assert_eq!(parse_with(&mem, vast, &[header(), (DATA, 16, READ), status()]).unwrap().0, Err(IOERR));
    }
}

#[test]
fn small_requests_of_the_wrong_shape_fail_and_unknown_ones_are_unsupported() {
    let mem = memory();
    let shaped = |kind, data: Option<(u64, u32, u16)>| {
        put_header(&mem, kind, 0);
        let chain: Vec<_> = [Some(header()), data, Some(status())].into_iter().flatten().collect();
        parse(&mem, &chain).unwrap().0
    };
    assert_eq!(shaped(VIRTIO_BLK_T_GET_ID, Some((DATA, 20, WRITE))), Ok(Operation::Identify));
    assert_eq!(shaped(VIRTIO_BLK_T_GET_ID, Some((DATA, 19, WRITE))), Err(IOERR));
    assert_eq!(shaped(VIRTIO_BLK_T_GET_ID, None), Err(IOERR));
    assert_eq!(shaped(VIRTIO_BLK_T_FLUSH, Some((DATA, 512, WRITE))), Err(IOERR));
    assert_eq!(shaped(VIRTIO_BLK_T_OUT, Some((DATA, 512, WRITE))), Err(IOERR));
    assert_eq!(shaped(VIRTIO_BLK_T_IN, Some((DATA, 512, READ))), Err(IOERR));
    for kind in [2, 3, 5, 10, 14, 0x8000_0000, u32::MAX] {
        assert_eq!(shaped(kind, None), Err(UNSUPP), "{kind}");
    }
}

#[test]
fn without_a_header_there_is_still_a_status() {
    let mem = memory();
    assert_eq!(parse(&mem, &[(HEADER, 15, READ), status()]).unwrap().0, Err(IOERR));
    assert_eq!(parse(&mem, &[status()]).unwrap().0, Err(IOERR));
    assert_eq!(parse(&mem, &[(0x4000_0000, 16, READ), status()]).unwrap().0, Err(IOERR));
    assert_eq!(parse(&mem, &[(u64::MAX - 4, 16, READ), status()]).unwrap().0, Err(IOERR));
}

#[test]
fn without_a_status_there_is_no_answer() {
    let mem = memory();
    put_header(&mem, VIRTIO_BLK_T_FLUSH, 0);
    assert_eq!(parse(&mem, &[header()]), Err(Malformed::NoStatus));
    assert_eq!(parse(&mem, &[header(), (STATUS, 0, WRITE)]), Err(Malformed::NoStatus));
    assert_eq!(parse(&mem, &[header(), (0x20_0000, 1, WRITE)]), Err(Malformed::StatusOutside));
    assert_eq!(parse(&mem, &[header(), (u64::MAX, 2, WRITE)]), Err(Malformed::StatusOutside));
    assert_eq!(parse(&mem, &[status(), header()]), Err(Malformed::Order));
}

/// A chain of raw descriptors, exactly as given, starting at `head`.
fn parse_raw(mem: &GuestMemoryMmap, head: u16, descriptors: &[(u64, u32, u16, u16)]) -> Result<(), Malformed> {
    let mock = MockSplitQueue::new(mem, 16);
    for (index, &(at, len, flags, next)) in descriptors.iter().enumerate() {
        let raw = RawDescriptor::from(Descriptor::new(at, len, flags, next));
        mock.desc_table().store(index as u16, raw).unwrap();
    }
    mock.avail().ring().ref_at(0).unwrap().store(head);
    mock.avail().idx().store(1);
    let mut queue: Queue = mock.create_queue().unwrap();
    let chain = queue.iter(mem).unwrap().next().unwrap();
    Parser::default().parse(mem, chain, DISK).map(drop)
}

#[test]
fn chains_that_do_not_end() {
    let mem = memory();
    let loops = [(HEADER, 16, NEXT, 1), (STATUS, 1, NEXT | WRITE, 1)];
    assert_eq!(parse_raw(&mem, 0, &loops), Err(Malformed::Unterminated));
    assert_eq!(parse_raw(&mem, 0, &[(HEADER, 16, NEXT, 16)]), Err(Malformed::Unterminated));
    assert_eq!(parse_raw(&mem, 16, &[]), Err(Malformed::Unterminated));
    // 4 GiB and more in one chain (§2.7.5.2).
    let long = [(HEADER, 16, NEXT, 1), (DATA, u32::MAX, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)];
    assert_eq!(parse_raw(&mem, 0, &long), Err(Malformed::Unterminated));
}

#[test]
fn indirect_tables() {
    let mem = memory();
    put_header(&mem, VIRTIO_BLK_T_FLUSH, 0);
    let table = |index: u64, at: u64, len: u32, flags: u16, next: u16| {
        let raw = RawDescriptor::from(Descriptor::new(at, len, flags, next));
        mem.write_obj(raw, GuestAddress(DATA + index * 16)).unwrap();
    };
    table(0, HEADER, 16, NEXT, 1);
    table(1, STATUS, 1, WRITE, 0);
    assert_eq!(parse_raw(&mem, 0, &[(DATA, 32, INDIRECT, 0)]), Ok(()));
    // Too short for its second entry, not whole entries, empty, outside memory, a table in a table.
    assert_eq!(parse_raw(&mem, 0, &[(DATA, 16, INDIRECT, 0)]), Err(Malformed::Unterminated));
    assert_eq!(parse_raw(&mem, 0, &[(DATA, 33, INDIRECT, 0)]), Err(Malformed::Unterminated));
    assert_eq!(parse_raw(&mem, 0, &[(DATA, 0, INDIRECT, 0)]), Err(Malformed::Unterminated));
    assert_eq!(parse_raw(&mem, 0, &[(0x4000_0000, 32, INDIRECT, 0)]), Err(Malformed::Unterminated));
    table(1, DATA, 32, INDIRECT, 0);
    assert_eq!(parse_raw(&mem, 0, &[(DATA, 32, INDIRECT, 0)]), Err(Malformed::Unterminated));
    // As long as a table may be, but longer than any queue.
    for index in 0..2000 {
        table(index, HEADER, 16, NEXT, index as u16 + 1);
    }
    assert_eq!(parse_raw(&mem, 0, &[(DATA, 2000 * 16, INDIRECT, 0)]), Err(Malformed::TooLong));
}
