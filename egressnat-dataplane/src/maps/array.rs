//! Arrays as a whole: entry by entry, one of sixteen thousand would take as many system calls.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use aya::Pod;
use aya::maps::{Array, IterableMap, MapData, MapError};
use aya::sys::SyscallError;

/// `BPF_MAP_LOOKUP_BATCH` (`linux/bpf.h`), which arrays have since 5.6.
const MAP_LOOKUP_BATCH: libc::c_long = 24;

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

/// All values, in the order of their indices.
pub(crate) fn read<V: Pod>(array: &Array<MapData, V>) -> Result<Vec<V>, MapError> {
    let entries = array.len() as usize;
    let mut next = 0u32;
    let mut keys = vec![0u32; entries];
    let mut values = vec![MaybeUninit::<V>::uninit(); entries];
    let mut batch = Batch {
        out_batch: (&raw mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: array.len(),
        map: array.map().fd().as_fd().as_raw_fd() as u32,
        ..Batch::default()
    };
    let (attributes, size) = (&raw mut batch, size_of::<Batch>());
    // SAFETY: the attributes are as large as we say; `keys` and `values` have room for `count` entries, whose sizes aya has compared with
    // those of the map; all outlive the call.
    if unsafe { libc::syscall(libc::SYS_bpf, MAP_LOOKUP_BATCH, attributes, size) } < 0 {
        let io_error = io::Error::last_os_error();
        // What it says behind the last entry.
        if io_error.raw_os_error() != Some(libc::ENOENT) {
            let call = "BPF_MAP_LOOKUP_BATCH";
            return Err(SyscallError { call, io_error }.into());
        }
    }
    values.truncate(batch.count as usize);
    // SAFETY: the kernel has written the first `count` values, any bits of which are one of a `Pod`; an array has every index, in order.
    Ok(values
        .iter()
        .map(|value| unsafe { value.assume_init() })
        .collect())
}
