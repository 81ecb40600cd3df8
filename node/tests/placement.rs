//! What decides where a job runs.

use std::time::Duration;

use accel_node::placement::{Candidate, Held, best, offered};
use accel_protocol::{Backend, Device, Load, Proof};

const MODEL: Option<u64> = Some(8_000_000_000);

/// An idle machine that is as good as any.
fn machine() -> Candidate {
    Candidate {
        is_exact: true,
        held: Held::Nothing,
        memory_bytes: Some(16_000_000_000),
        gbytes_per_second: Some(20.0),
        load: Load { running: 0, queued: 0, capacity: 8 },
        away: Some(Duration::from_millis(5)),
    }
}

fn busy(jobs: u32) -> Load {
    Load { running: jobs, ..machine().load }
}

/// The better one of two, whichever is named first.
fn better(one: Candidate, other: Candidate) {
    assert_eq!(best(&[one, other], MODEL), Some(0), "{other:?}");
    assert_eq!(best(&[other, one], MODEL), Some(1), "{other:?}");
}

#[test]
fn the_first_thing_in_which_machines_differ_decides() {
    let near = Candidate { away: Some(Duration::from_millis(1)), ..machine() };
    better(near, machine());
    better(near, Candidate { away: None, ..machine() });
    let idle = machine();
    better(idle, Candidate { load: busy(1), ..near });
    let fast = Candidate { load: busy(3), gbytes_per_second: Some(61.0), ..machine() };
    better(fast, near);
    let on_disk = Candidate { held: Held::OnDisk, load: busy(3), ..machine() };
    better(on_disk, Candidate { gbytes_per_second: Some(1000.0), ..near });
    let with_room = machine();
    better(with_room, Candidate { memory_bytes: Some(4_000_000_000), ..on_disk });
    let in_memory = Candidate { held: Held::InMemory, memory_bytes: Some(4_000_000_000), load: busy(7), ..machine() };
    better(in_memory, Candidate { held: Held::OnDisk, ..near });
    let exact = machine();
    better(exact, Candidate { is_exact: false, ..in_memory });
}

#[test]
fn a_machine_is_slow_only_beside_one_that_could_do_as_well() {
    let slow = Candidate { gbytes_per_second: Some(5.0), ..machine() };
    // The fast one has no room for it.
    better(slow, Candidate { memory_bytes: Some(1), ..machine() });
    // Twice as fast is no reason: measurements differ.
    let twice = Candidate { gbytes_per_second: Some(10.0), load: busy(1), ..machine() };
    better(slow, twice);
}

#[test]
fn what_nobody_tells_speaks_against_nobody() {
    let silent = Candidate { memory_bytes: None, gbytes_per_second: None, ..machine() };
    better(silent, Candidate { load: busy(1), ..machine() });
    assert_eq!(best(&[Candidate { memory_bytes: Some(1), ..machine() }], None), Some(0));
    assert_eq!(best(&[], MODEL), None);
}

#[test]
fn the_processor_is_what_counts() {
    let proof = |gbytes_per_second| Ok(Proof { gflops: 1.0, gbytes_per_second, max_error: 0.0 });
    let device = |backend, memory_bytes, proof| Device { backend, name: String::new(), memory_bytes, proof };
    let devices = [device(Backend::Cuda, 1 << 40, proof(900.0)), device(Backend::Cpu, 1 << 30, proof(12.0))];
    assert_eq!(offered(&devices), (Some(1 << 30), Some(12.0)));
    assert_eq!(offered(&[device(Backend::Cpu, 0, proof(f64::NAN))]), (None, None));
}
