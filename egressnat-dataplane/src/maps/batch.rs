//! Maps in batches: entry by entry, each takes two system calls.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use aya::Pod;
use aya::maps::{Array, IterableMap, MapData, MapError};
use aya::sys::SyscallError;

/// `BPF_MAP_LOOKUP_BATCH` (`linux/bpf.h`), which hashes and arrays have since 5.6, and tries since 5.14.
const MAP_LOOKUP_BATCH: libc::c_long = 24;

/// Entries of a batch where a map is read as a whole.
const MANY: u32 = 1024;

/// The `batch` of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// As large as the key of any of our maps: what the kernel goes on from is a key, or the number of a bucket.
type Place = [u32; 8];

/// How far a map was read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    place: Option<Place>,
    /// Entries that were read.
    count: u32,
    is_at_end: bool,
}

impl Cursor {
    /// Whether all was read.
    pub(crate) fn is_at_end(&self) -> bool {
        self.is_at_end
    }

    /// As [`read`](Self::read), and no more than `end` entries with all that were read before.
    pub(crate) fn read_until<K: Pod, V: Pod>(
        &mut self,
        map: &impl IterableMap<K, V>,
        end: u32,
        most: u32,
    ) -> Result<Vec<(K, V)>, MapError> {
        let entries = match end.saturating_sub(self.count).min(most) {
            0 => Vec::new(),
            most => self.read(map, most)?,
        };
        self.is_at_end |= self.count >= end;
        Ok(entries)
    }

    /// The next entries, at most so many; perhaps none. What others write meanwhile may be missed, or come twice.
    pub(crate) fn read<K: Pod, V: Pod>(
        &mut self,
        map: &impl IterableMap<K, V>,
        most: u32,
    ) -> Result<Vec<(K, V)>, MapError> {
        const { assert!(size_of::<K>() <= size_of::<Place>()) };
        let mut keys = Vec::<K>::with_capacity(most as usize);
        let mut values = Vec::<V>::with_capacity(most as usize);
        let mut next = Place::default();
        let place = self.place.as_ref();
        let mut batch = Batch {
            in_batch: place.map_or(0, |place| place.as_ptr() as u64),
            out_batch: next.as_mut_ptr() as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: most,
            map: map.map().fd().as_fd().as_raw_fd() as u32,
            ..Batch::default()
        };
        let (attributes, size) = (&raw mut batch, size_of::<Batch>());
        // SAFETY: the attributes are as large as we say; `keys` and `values` have room for `count` entries, whose sizes aya has compared
        // with those of the map, and both places for a key or a number; all outlive the call.
        if unsafe { libc::syscall(libc::SYS_bpf, MAP_LOOKUP_BATCH, attributes, size) } < 0 {
            let io_error = io::Error::last_os_error();
            match io_error.raw_os_error() {
                Some(libc::ENOENT) => self.is_at_end = true,
                // Somebody took away what comes next: older kernels end a batch there.
                Some(libc::EINTR) => {}
                _ => {
                    let call = "BPF_MAP_LOOKUP_BATCH";
                    return Err(SyscallError { call, io_error }.into());
                }
            }
        }
        let count = batch.count.min(most);
        if count > 0 {
            self.place = Some(next);
            self.count += count;
        }
        let count = count as usize;
        // SAFETY: the kernel has written the first `count` of both, any bits of which are one of a `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        Ok(keys.into_iter().zip(values).collect())
    }
}

/// All entries of a map.
pub(super) fn all<K: Pod, V: Pod>(map: &impl IterableMap<K, V>) -> Result<Vec<(K, V)>, MapError> {
    let (mut cursor, mut entries) = (Cursor::default(), Vec::new());
    while !cursor.is_at_end() {
        entries.extend(cursor.read(map, MANY)?);
    }
    Ok(entries)
}

/// All values of an array, in the order of their indices.
pub(crate) fn read_array<V: Pod>(array: &Array<MapData, V>) -> Result<Vec<V>, MapError> {
    // An array has every index, in order.
    let values = all::<u32, V>(array)?.into_iter();
    Ok(values.map(|(_, value)| value).collect())
}
