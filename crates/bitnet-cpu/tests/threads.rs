//! Threads as a program gets them: the tests inside the crate have more than there are cores, to see them in each other's way.

use bitnet_cpu::{Cpu, Error};

#[test]
fn no_more_threads_run_than_there_are_cores() {
    let cores = Cpu::new(None, Some(Cpu::MAX_THREADS)).unwrap().n_threads();
    // A quota can leave the time of fewer, but no core is out of reach.
    assert!(cores >= std::thread::available_parallelism().unwrap().get());
    for threads in [1, cores, cores + 1, 8 * cores] {
        let threads = threads.min(Cpu::MAX_THREADS);
        let cpu = Cpu::new(None, Some(threads)).unwrap();
        assert_eq!(cpu.n_threads(), threads.min(cores));
    }
    assert!(matches!(
        Cpu::new(None, Some(Cpu::MAX_THREADS + 1)),
        Err(Error::Threads { .. })
    ));
}
