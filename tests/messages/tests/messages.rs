//! Each mistake is told in words that help. After a change of the words, or of the compiler:
//! `TRYBUILD=overwrite cargo test -p redlock-messages -- --ignored`, and read what is different.

#[test]
#[ignore = "the messages are those of one version of the compiler: run by .ci/run"]
fn each_mistake_is_told_in_words_that_help() {
    trybuild::TestCases::new().compile_fail("mistakes/*.rs");
}
