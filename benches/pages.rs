//! What a metrics page costs to read: recorded ones, and ones that are as long as a page may be. `cargo bench --bench pages`.

use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use snapgate::fleet::{AUTO, Engines, Pages};

const IDLE: &str = include_str!("../tests/fixtures/vllm-0.32.0/metrics.txt");
const BUSY: &str = include_str!("../tests/fixtures/vllm-0.32.0/metrics-busy.txt");
const SGLANG: &str = include_str!("../tests/corpus/prometheus/sglang");

fn pages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pages");
    let of = |length: usize| BUSY.chars().cycle().take(length).chain("\n".chars()).collect::<String>();
    for (name, page) in [
        ("vllm idle", IDLE.to_owned()),
        ("vllm busy", BUSY.to_owned()),
        ("sglang", SGLANG.to_owned()),
        ("60 KB", of(60_000)),
        ("1 MB", of(1_000_000)),
    ] {
        group.throughput(Throughput::Bytes(page.len() as u64));
        let mut pages = Pages::new(Engines::new(&[]).possible(AUTO), Duration::from_secs(10));
        let start = Instant::now();
        pages.read(page.as_bytes(), start).expect("it is an engine's");
        let mut seconds = 0;
        // As in the fleet: the same target's next page, half a second later.
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                seconds += 1;
                pages.read(page.as_bytes(), start + Duration::from_millis(500 * seconds))
            });
        });
    }
    // What each target pays once: all engines that can be recognised are tried.
    let engines = Engines::new(&[]);
    group.throughput(Throughput::Bytes(BUSY.len() as u64));
    group.bench_function("vllm busy, first page", |bencher| {
        bencher.iter_batched(
            || Pages::new(engines.possible(AUTO), Duration::from_secs(10)),
            |mut pages| pages.read(BUSY.as_bytes(), Instant::now()),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, pages);
criterion_main!(benches);
