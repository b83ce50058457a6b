//! Targets as they were, each time: where they are, which pods, and which GPUs are theirs.

use std::sync::Arc;

use super::arbitrary::NOW;
use super::*;
use crate::snapshot::{self, GpuUuids, Health, Sample, Target};

#[test]
fn a_target_that_changes_is_stored_as_it_was_each_time() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let before = sample(0, 1, NOW);
    let moved = Arc::new(Target { address: "10.9.9.9:8000".into(), ..(*before.target).clone() });
    let after = Arc::new(Sample::new(moved, 2, NOW, Health::Unknown, before.readings, 10_000));
    let records = [plain(NOW, 1, &[Arc::clone(&before)]), plain(NOW, 2, &[after]), plain(NOW, 3, &[before])];
    let addresses = |record: &Record| record.outcome().unwrap().attempts[0].target.address.clone();
    let expected: Vec<_> = records.iter().map(addresses).collect();
    store(&mut writer, &records.map(Arc::new), NOW);
    let found = reader.after(0, u64::MAX, 10).unwrap();
    assert_eq!(found.iter().map(|(_, record)| addresses(record)).collect::<Vec<_>>(), expected);
}

#[test]
fn the_gpus_of_a_target_are_stored_once_and_again_when_they_are_others() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let with = |n, uuids: Option<&GpuUuids>| {
        let sample = sample(0, n, NOW);
        let target = Arc::new(Target { gpus: None, ..(*sample.target).clone() });
        let bare = Sample::new(target, n, NOW, Health::Healthy, sample.readings, 10_000);
        Arc::new(bare.with_gpu_uuids(uuids.cloned()))
    };
    let (two, other): (GpuUuids, GpuUuids) = (["GPU-a".into(), "GPU-b".into()].into(), ["GPU-c/7".into()].into());
    // Records of before a change end among those of after it.
    let order = [None, Some(&two), None, Some(&two), Some(&other), Some(&two), None, Some(&other)];
    let records: Vec<_> = (1..).zip(order).map(|(n, uuids)| Arc::new(plain(NOW, n, &[with(n, uuids)]))).collect();
    store(&mut writer, &records, NOW);
    let found = reader.after(0, u64::MAX, 10).unwrap();
    let read: Vec<_> =
        found.iter().map(|(_, record)| record.issued.decision.as_ref().unwrap().chosen().sample.clone()).collect();
    assert_eq!(read.iter().map(|sample| sample.gpu_uuids.as_ref()).collect::<Vec<_>>(), order);
    assert_eq!((read[0].gpus(), read[1].gpus(), read[4].gpus()), (None, Some(2), Some(1)));
    assert_eq!(place.sql::<i64>("SELECT count(*) FROM targets"), 3);
    let shown = "SELECT gpus || ' ' || gpu_uuids FROM snapshot_candidates WHERE seq = 2";
    assert_eq!(place.sql::<String>(shown), r#"2 ["GPU-a","GPU-b"]"#);
}

#[test]
fn the_pod_that_a_target_is_stands_with_it_once_and_people_can_ask_for_it() {
    let mut place = Place::new();
    let (mut writer, reader) = place.open();
    let pod = snapshot::Place {
        namespace: "llm".into(),
        pod: "vllm-0".into(),
        uid: "u-0".into(),
        node: Some("node-1".into()),
        labels: [("app".into(), "vllm".into())].into(),
    };
    let of = |n, pod: Option<&snapshot::Place>| {
        let sample = sample(0, n, NOW);
        let target = Arc::new(Target { place: pod.cloned().map(Arc::new), ..(*sample.target).clone() });
        Arc::new(Sample::new(target, n, NOW, Health::Healthy, sample.readings, 10_000))
    };
    let again = snapshot::Place { uid: "u-1".into(), ..pod.clone() };
    let order = [None, Some(&pod), Some(&pod), Some(&again)];
    let records: Vec<_> = (1..).zip(order).map(|(n, pod)| Arc::new(plain(NOW, n, &[of(n, pod)]))).collect();
    store(&mut writer, &records, NOW);
    let found = reader.after(0, u64::MAX, 10).unwrap();
    let read: Vec<_> = found
        .iter()
        .map(|(_, record)| record.issued.decision.as_ref().unwrap().target().place.as_deref().cloned())
        .collect();
    assert_eq!(read.iter().map(Option::as_ref).collect::<Vec<_>>(), order);
    assert_eq!(place.sql::<i64>("SELECT count(*) FROM targets"), 3);
    let shown = "SELECT kubernetes ->> 'node' FROM snapshot_candidates WHERE seq = 2";
    assert_eq!(place.sql::<String>(shown), "node-1");
}
