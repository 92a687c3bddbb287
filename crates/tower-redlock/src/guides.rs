//! The programs of the guides are compiled, and run, as tests.

#[doc = include_str!("../../../docs/guides/choosing-a-key.md")]
struct ChoosingAKey;

#[doc = include_str!("../../../docs/guides/ttl-wait-renewal.md")]
struct TtlWaitRenewal;

#[doc = include_str!("../../../docs/guides/where-the-layer-goes.md")]
struct WhereTheLayerGoes;

#[doc = include_str!("../../../docs/guides/testing-without-redis.md")]
struct TestingWithoutRedis;

#[doc = include_str!("../../../docs/guides/coming-from.md")]
struct ComingFrom;

#[doc = include_str!("../../../docs/guides/running-redis.md")]
struct RunningRedis;
