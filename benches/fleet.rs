//! What a large fleet costs each tick, and what it costs when its targets change.
//!
//! `cargo bench --bench fleet`. A view is published ten times a second, off the data path, from the share of a processor
//! that `fleet.cpu_share` names.

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use snapgate::clock::Clock;
use snapgate::fleet::{Fleet, Settings, TargetSettings};
use snapgate::telemetry::Metrics;

const TARGETS: [usize; 3] = [100, 1_000, 10_000];

/// Of a hundred targets so many have new values at a tick. With the usual intervals it is twenty; in a fleet so large that
/// its polls are stretched, one.
const CHANGED: [usize; 3] = [0, 1, 20];

fn targets(count: usize) -> Vec<TargetSettings> {
    let address = |n: usize| format!("10.{}.{}.{}:8000", n >> 16 & 255, n >> 8 & 255, n & 255);
    (0..count).map(|n| TargetSettings::new(&format!("vllm-{n}"), &address(n))).collect()
}

fn fleet(count: usize) -> Arc<Fleet> {
    Fleet::new(Settings::new(targets(count)), Clock::start(), Metrics::new())
}

fn publish(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("publish");
    for count in TARGETS {
        let fleet = fleet(count);
        for percent in CHANGED {
            let (mut tick, changed) = (0, count * percent / 100);
            group.bench_function(BenchmarkId::new(format!("{percent}% new"), count), |bencher| {
                bencher.iter(|| {
                    // Others each time, and spread, as polls are: neighbours share a block.
                    fleet.touch((0..changed).map(|n| (tick + n * 97) % count));
                    tick += 1;
                    fleet.publish();
                });
            });
        }
    }
    group.finish();
}

fn change(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("change");
    for count in TARGETS {
        let fleet = fleet(count);
        let (all, fewer) = (targets(count), targets(count - count / 100));
        let mut whole = true;
        group.bench_function(BenchmarkId::new("1% come or go", count), |bencher| {
            bencher.iter(|| {
                whole = !whole;
                black_box(fleet.replace_targets(if whole { &all } else { &fewer }))
            });
        });
    }
    group.finish();
}

criterion_group!(benches, publish, change);
criterion_main!(benches);
