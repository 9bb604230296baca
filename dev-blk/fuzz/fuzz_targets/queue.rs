//! The whole back end below vhost-user: a virtqueue in memory over an image that is a real file. Whatever a guest does,
//! every turn ends, an image keeps its size, and a read-only image its content.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use dev_blk::device::Device;
use dev_blk::disk::open::{Options, Source, open};
use dev_blk::disk::{Cache, Format};
use dev_blk::queue::Engine;
use guest::{Choice, SECTORS, with_guest};
use libfuzzer_sys::fuzz_target;

const BYTES: usize = SECTORS as usize * 512;

/// A device over a file in memory.
struct Bench {
    device: Device,
    image: File,
    choice: Choice,
}

impl Bench {
    fn new(choice: Choice) -> Self {
        let image = memfd::MemfdOptions::default().create("image").expect("memfd").into_file();
        image.write_all_at(&[0xa5; BYTES], 0).expect("memory");
        image.set_len(choice.sectors() * 512).expect("a sparse file");
        let source = Source::Descriptor(image.try_clone().expect("descriptor").into());
        let read_only = choice.read_only;
        // Unsafe only means that a flush does not wait for a medium, which memory has not.
        let options = Options { source, format: Format::Raw, cache: Cache::Unsafe, read_only, allow_backing: false };
        let disk = open(options).expect("an image");
        Self { device: Device::new(disk, "fuzz", 1).expect("a serial number"), image, choice }
    }

    fn check(&self) {
        assert_eq!(self.image.metadata().expect("metadata").len(), self.choice.sectors() * 512);
        if self.choice.read_only {
            let mut content = [0; BYTES];
            self.image.read_exact_at(&mut content, 0).expect("whole image");
            assert!(content.iter().all(|byte| *byte == 0xa5));
        } else if self.choice.large {
            // What was written would add up.
            self.image.set_len(0).and_then(|()| self.image.set_len(self.choice.sectors() * 512)).expect("a sparse file");
        }
    }
}

thread_local! {
    static BENCHES: [Bench; 4] = [(false, false), (true, false), (false, true), (true, true)]
        .map(|(read_only, large)| Bench::new(Choice { read_only, event_idx: false, large }));
    static ENGINE: RefCell<Engine> = RefCell::default();
}

fuzz_target!(|input: &[u8]| {
    with_guest(input, |choice, memory, mut queue| {
        BENCHES.with(|benches| {
            let bench = &benches[usize::from(choice.read_only) + 2 * usize::from(choice.large)];
            bench.device.accept(1 << 9);
            ENGINE.with_borrow_mut(|engine| {
                // A read into the ring can make more available for ever. Each turn must end all the same.
                for _ in 0..4 {
                    if engine.run(&mut queue, memory, &bench.device).is_err() {
                        break;
                    }
                }
            });
            bench.check();
        });
    });
});
