//! Whole requests through a queue, on real image files.

use std::io::Write;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::desc::split::{Descriptor, VirtqUsedElem};
use virtio_queue::mock::MockSplitQueue;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::disk::open::{Options, Source, open};
use crate::disk::{Cache, Format};

const HEADER: u64 = 0x10_0000;
const DATA: u64 = 0x11_0000;
const STATUS: u64 = 0x1f_0000;
const WRITE: u16 = 2;
const IOERR: u8 = VIRTIO_BLK_S_IOERR as u8;

struct Bench {
    mem: GuestMemoryMmap,
    device: Device,
    image: tempfile::NamedTempFile,
}

impl Bench {
    fn new(content: &[u8], cache: Cache, read_only: bool) -> Self {
        let mut image = tempfile::NamedTempFile::new().unwrap();
        image.write_all(content).unwrap();
        let source = Source::Path(image.path().to_owned());
        let disk = open(Options { source, format: Format::Raw, cache, read_only, allow_backing: false }).unwrap();
        let device = Device::new(disk, "serial number", 1).unwrap();
        device.accept(1 << VIRTIO_BLK_F_FLUSH);
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        Self { mem, device, image }
    }

    /// Sends one request with its data at `at`; the status and the used length.
    fn request(&self, kind: u32, sector: u64, at: u64, bytes: u32, flags: u16) -> (u8, u32) {
        self.mem.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.mem.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        self.mem.write_obj(0xffu8, GuestAddress(STATUS)).unwrap();
        let mock = MockSplitQueue::new(&self.mem, 16);
        let data = (bytes > 0).then_some((at, bytes, flags));
        let chain = [Some((HEADER, 16, 0)), data, Some((STATUS, 1, WRITE))];
        let raw: Vec<_> =
            chain.iter().flatten().map(|&(at, len, flags)| Descriptor::new(at, len, flags, 0).into()).collect();
        mock.build_desc_chain(&raw).unwrap();
        let mut queue: Queue = mock.create_queue().unwrap();
        let progress = Engine::default().run(&mut queue, &self.mem, &self.device).unwrap();
        assert_eq!((progress.completed, mock.used().idx().load()), (1, 1));
        let used: VirtqUsedElem = mock.used().ring().ref_at(0).unwrap().load();
        (self.mem.read_obj(GuestAddress(STATUS)).unwrap(), used.len())
    }

    fn image(&self) -> Vec<u8> {
        std::fs::read(self.image.path()).unwrap()
    }

    fn guest(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.mem.read_slice(&mut data, GuestAddress(at)).unwrap();
        data
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 512) as u8).collect()
}

#[test]
fn data_goes_both_ways_in_every_mode_and_at_any_address() {
    for cache in [Cache::None, Cache::Writeback, Cache::Unsafe] {
        let mut expected = pattern(64 << 10);
        let bench = Bench::new(&expected, cache, false);
        // Aligned, and as crooked as a guest may be: O_DIRECT takes only the first.
        for (index, at) in [DATA, DATA + 1, DATA + 511].into_iter().enumerate() {
            let sector = 3 + index * 5;
            assert_eq!(bench.request(VIRTIO_BLK_T_IN, sector as u64, at, 1536, WRITE), (0, 1537));
            assert_eq!(bench.guest(at, 1536), expected[sector * 512..][..1536], "{cache:?} {at:#x}");
            let new = vec![index as u8 + 1; 1536];
            bench.mem.write_slice(&new, GuestAddress(at)).unwrap();
            assert_eq!(bench.request(VIRTIO_BLK_T_OUT, sector as u64 + 40, at, 1536, 0), (0, 1));
            expected[(sector + 40) * 512..][..1536].copy_from_slice(&new);
            assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, 0), (0, 1));
        }
        assert!(bench.image() == expected, "{cache:?}");
    }
}

#[test]
fn a_large_crooked_transfer_is_cut_and_put_together_again() {
    let content = pattern(900 << 10);
    let bench = Bench::new(&content, Cache::None, false);
    // Two and more scratch buffers, starting at an odd sector.
    let bytes = 700 << 10;
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 5, DATA + 3, bytes, WRITE), (0, bytes + 1));
    assert!(bench.guest(DATA + 3, bytes as usize) == content[5 * 512..][..bytes as usize]);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 7, DATA + 3, bytes, 0), (0, 1));
    let mut expected = content.clone();
    expected[7 * 512..][..bytes as usize].copy_from_slice(&content[5 * 512..][..bytes as usize]);
    assert!(bench.image() == expected);
}

#[test]
fn zeroes_and_the_serial_number() {
    let content = pattern(64 << 10);
    let bench = Bench::new(&content, Cache::Writeback, false);
    let mut expected = content;
    for (flags, sector) in [(0u32, 9u64), (1, 32)] {
        bench.mem.write_obj(sector, GuestAddress(DATA)).unwrap();
        bench.mem.write_obj(11u32, GuestAddress(DATA + 8)).unwrap();
        bench.mem.write_obj(flags, GuestAddress(DATA + 12)).unwrap();
        assert_eq!(bench.request(VIRTIO_BLK_T_WRITE_ZEROES, 0, DATA, 16, 0), (0, 1));
        expected[sector as usize * 512..][..11 * 512].fill(0);
    }
    assert!(bench.image() == expected);
    bench.mem.write_slice(&[0xee; 40], GuestAddress(DATA)).unwrap();
    assert_eq!(bench.request(VIRTIO_BLK_T_GET_ID, 0, DATA, 25, WRITE), (0, 26));
    let mut serial = b"serial number".to_vec();
    serial.resize(25, 0);
    serial.resize(40, 0xee);
    assert_eq!(bench.guest(DATA, 40), serial);
}

#[test]
fn what_a_failed_read_did_not_write_is_zero() {
    let bench = Bench::new(&pattern(4096), Cache::Writeback, false);
    bench.mem.write_slice(&[0xee; 2048], GuestAddress(DATA)).unwrap();
    // Somebody shortens the image behind our back: the size that requests are checked against is the old one.
    bench.image.as_file().set_len(1024).unwrap();
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, DATA, 2048, WRITE), (IOERR, 2049));
    assert_eq!(bench.guest(DATA, 2048), [0; 2048]);
    assert_eq!(bench.device.measure().unwrap(), 2);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, DATA, 1024, WRITE).0, 0);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 1, DATA, 1024, WRITE).0, IOERR);
}

#[test]
fn a_buffer_outside_memory_fails_alone() {
    let bench = Bench::new(&pattern(4096), Cache::Writeback, false);
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, 0x7000_0000, 512, WRITE), (IOERR, 0));
    assert_eq!(bench.request(VIRTIO_BLK_T_IN, 0, 0x1f_ff00, 512, WRITE), (IOERR, 0));
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, 0x7000_0000, 512, 0), (IOERR, 1));
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, u64::MAX - 100, 512, 0), (IOERR, 1));
    assert!(bench.image() == pattern(4096));
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let bench = Bench::new(&pattern(4096), Cache::Writeback, true);
    assert_eq!(bench.request(VIRTIO_BLK_T_OUT, 0, DATA, 512, 0), (IOERR, 1));
    assert_eq!(bench.request(VIRTIO_BLK_T_FLUSH, 0, 0, 0, 0), (0, 1));
    assert!(bench.image() == pattern(4096));
}

#[test]
fn broken_rings_stop_the_queue_and_nothing_else() {
    let bench = Bench::new(&pattern(4096), Cache::Writeback, false);
    let mock = MockSplitQueue::new(&bench.mem, 16);
    let mut queue: Queue = mock.create_queue().unwrap();
    let mut engine = Engine::default();
    mock.avail().idx().store(17);
    assert!(matches!(engine.run(&mut queue, &bench.mem, &bench.device), Err(Broken::Ring(_))));
    mock.avail().idx().store(1);
    mock.avail().ring().ref_at(0).unwrap().store(16);
    assert!(matches!(engine.run(&mut queue, &bench.mem, &bench.device), Err(Broken::Chain { head: 16, .. })));
    // The index can be read, the entry cannot.
    let mut queue: Queue = mock.create_queue().unwrap();
    queue.try_set_avail_ring_address(GuestAddress(0x20_0000 - 4)).unwrap();
    bench.mem.write_obj(1u16, GuestAddress(0x20_0000 - 2)).unwrap();
    assert!(matches!(engine.run(&mut queue, &bench.mem, &bench.device), Err(Broken::Unreadable)));
    queue.try_set_avail_ring_address(GuestAddress(0x7000_0000)).unwrap();
    assert!(matches!(engine.run(&mut queue, &bench.mem, &bench.device), Err(Broken::Ring(_))));
}

#[test]
fn a_driver_that_adds_requests_meanwhile_breaks_nothing() {
    const REQUESTS: u16 = 2000;
    let bench = Bench::new(&pattern(4096), Cache::Writeback, false);
    bench.mem.write_obj(VIRTIO_BLK_T_FLUSH, GuestAddress(HEADER)).unwrap();
    let mock = MockSplitQueue::new(&bench.mem, 16);
    let chain = [(HEADER, 16, 1, 1), (STATUS, 1, WRITE, 0)];
    for (slot, (at, len, flags, next)) in chain.into_iter().enumerate() {
        mock.desc_table().store(slot as u16, Descriptor::new(at, len, flags, next).into()).unwrap();
    }
    let mut queue: Queue = mock.create_queue().unwrap();
    // The mock's own used ring overlaps the last entries of its available ring.
    queue.try_set_used_ring_address(GuestAddress(0x1000)).unwrap();
    let (avail, used) = (GuestAddress(mock.avail_addr().0 + 2), GuestAddress(0x1002));
    let broken = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for count in 1..=REQUESTS {
                bench.mem.store(count, avail, Ordering::Release).unwrap();
                while bench.mem.load::<u16>(used, Ordering::Acquire).unwrap() != count {
                    if broken.load(Ordering::Acquire) {
                        return;
                    }
                    std::thread::yield_now();
                }
            }
        });
        let mut engine = Engine::default();
        let mut completed = 0;
        while completed < usize::from(REQUESTS) {
            let progress = engine.run(&mut queue, &bench.mem, &bench.device);
            broken.store(progress.is_err(), Ordering::Release);
            completed += progress.unwrap().completed;
            // Where both share a processor, the driver's turn.
            std::thread::yield_now();
        }
    });
}

/// What the broker keeps of a request that crashed a process is that request to a fuzzer: it is carried out.
#[test]
fn a_request_that_was_kept_is_the_same_request() {
    use ipc::specimen::{AVAIL, MEMORY, SIZE, Specimen, USED};
    let bench = Bench::new(&[7; 4096], Cache::Unsafe, false);
    let run = |specimen: &Specimen| {
        let input = specimen.input(false);
        let mem = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        mem.write_slice(&input[1..], GuestAddress(0)).unwrap();
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
        queue.set_used_ring_address(Some(USED as u32), Some(0));
        queue.set_ready(true);
        let progress = Engine::default().run(&mut queue, &mem, &bench.device).unwrap();
        assert_eq!(progress, Progress { completed: 1, empty: true });
        mem
    };
    let head = |kind: u32, sector: u64| {
        let mut head = kind.to_le_bytes().to_vec();
        head.resize(8, 0);
        head.extend(sector.to_le_bytes());
        head
    };
    let write =
        Specimen { head: head(1, 2), data: vec![9; 1024], out_bytes: 1024, tail_bytes: 1, ..Specimen::default() };
    run(&write);
    assert_eq!(bench.image()[1000..2060], [&[7; 24][..], &[9; 1024], &[7; 12]].concat());
    let read = Specimen { head: head(0, 1), in_bytes: 1024, tail_bytes: 1, ..Specimen::default() };
    let mem = run(&read);
    let mut found = [0; 1024];
    mem.read_slice(&mut found, GuestAddress(0x600)).unwrap();
    assert_eq!(found[..], [[7; 512], [9; 512]].concat());
}
