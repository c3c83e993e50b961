//! Joins and groups of shards that meet where they are, and which side moves where they do not.

use super::*;

#[tokio::test]
async fn rows_that_are_not_in_a_set_without_nulls_stay_where_they_are() {
    for sql in [
        "SELECT v FROM t WHERE k NOT IN (SELECT k FROM u)",
        "SELECT k, v, sum(s) FROM t WHERE k NOT IN (SELECT k FROM u WHERE s > 3) GROUP BY k, v",
    ] {
        let plan = plan(sql).await;
        assert!(plan.contains("Anti") && !plan.contains("null_aware"), "{sql}\n{plan}");
        check(sql, (0, 0)).await;
    }
}

#[tokio::test]
async fn a_small_side_whose_rows_are_given_joins_where_it_is() {
    for sql in [
        "SELECT v FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.k = few.k)",
        "SELECT v FROM few WHERE EXISTS (SELECT 1 FROM t WHERE t.k = few.k AND t.s > 3)",
        "SELECT few.v, t.v FROM few LEFT JOIN t ON t.k = few.k",
        "SELECT few.k, count(t.s) FROM few LEFT JOIN t ON t.k = few.k GROUP BY few.k",
        "SELECT v FROM few WHERE k NOT IN (SELECT k FROM t)",
    ] {
        check(sql, (0, 0)).await;
    }
}

#[tokio::test]
async fn only_the_side_that_is_not_sharded_by_the_key_of_its_join_moves() {
    for given in ["few", "t"] {
        let (stays, moves) = (format!("{given}.k"), if given == "t" { "u" } else { "t" });
        for sql in [
            format!(
                "SELECT v FROM {given} WHERE NOT EXISTS (SELECT 1 FROM {moves} WHERE {moves}.v = {stays})"
            ),
            format!("SELECT v FROM {given} WHERE EXISTS (SELECT 1 FROM {moves} WHERE {moves}.v = {stays})"),
            format!("SELECT {given}.v, {moves}.s FROM {given} LEFT JOIN {moves} ON {moves}.v = {stays}"),
            format!("SELECT {given}.v, {moves}.s FROM {given} FULL JOIN {moves} ON {moves}.v = {stays}"),
        ] {
            check(&sql, (1, 0)).await;
        }
    }
    // The small side comes to the large one, and its rows are given there.
    for sql in [
        "SELECT s FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.k = few.v)",
        "SELECT s FROM few WHERE EXISTS (SELECT 1 FROM t WHERE t.k = few.v)",
        "SELECT few.s, t.s FROM few LEFT JOIN t ON t.k = few.v",
        "SELECT few.s, t.s FROM few FULL JOIN t ON t.k = few.v",
    ] {
        check(sql, (1, 0)).await;
    }
    // Neither is sharded by what they are joined by.
    check("SELECT v FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.s = few.v)", (2, 0)).await;
    check("SELECT few.v, t.s FROM few FULL JOIN t ON t.v = few.s", (2, 0)).await;
    check("SELECT v FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.v = few.k + 1)", (2, 0)).await;
}

#[tokio::test]
async fn inner_joins_move_what_is_not_there() {
    check("SELECT t.s, u.s FROM t JOIN u ON t.k = u.k", (0, 0)).await;
    check("SELECT t.s, u.s FROM t JOIN u ON t.k = u.v", (1, 0)).await;
    check("SELECT t.s, u.s FROM t JOIN u ON t.v = u.k", (1, 0)).await;
    check("SELECT t.s, u.s FROM t JOIN u ON t.v = u.v", (2, 0)).await;
    // Rows that are where the others are are sent to nobody, unless they are so few that the large side reads
    // less for them.
    for small in ["some", "few"] {
        let sent = (0, usize::from(small == "few"));
        check(&format!("SELECT a.s, t.s FROM {small} a JOIN t ON a.k = t.k"), sent).await;
        check(&format!("SELECT t.s FROM t WHERE k IN (SELECT k FROM {small})"), sent).await;
        check(&format!("SELECT s FROM t WHERE NOT EXISTS (SELECT 1 FROM {small} a WHERE a.k = t.k)"), sent)
            .await;
    }
    // Others are sent to all tasks.
    check("SELECT few.s, t.s FROM few JOIN t ON few.k = t.v", (0, 1)).await;
    check("SELECT few.s, t.s FROM few JOIN t ON few.v = t.k", (0, 1)).await;
}

#[tokio::test]
async fn anti_joins_keep_their_partitioning() {
    for sql in [
        "SELECT k, s, count(*) FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.v = t.k) GROUP BY k, s",
        "SELECT k, s, count(*) FROM few WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.v = few.k) GROUP BY k, s",
    ] {
        check(sql, (1, 0)).await;
    }
    check(
        "SELECT k, s, count(*) FROM t WHERE NOT EXISTS (SELECT 1 FROM u WHERE u.k = t.k) GROUP BY k, s",
        (0, 0),
    )
    .await;
}

#[tokio::test]
async fn keys_of_several_columns_meet_in_whichever_order_they_are_written() {
    for on in ["p.k = q.k AND p.v = q.v", "p.v = q.v AND p.k = q.k", "q.v = p.v AND q.k = p.k"] {
        check(&format!("SELECT p.s, q.s FROM pairs p JOIN other_pairs q ON {on}"), (0, 0)).await;
        check(&format!("SELECT p.s, q.s FROM few_pairs p LEFT JOIN pairs q ON {on}"), (0, 0)).await;
    }
    for on in ["p.k = t.s AND p.v = t.v", "p.v = t.v AND p.k = t.s"] {
        check(&format!("SELECT p.s, t.k FROM pairs p JOIN t ON {on}"), (1, 0)).await;
        check(&format!("SELECT p.s, t.k FROM few_pairs p LEFT JOIN t ON {on}"), (1, 0)).await;
    }
    // A part of the key, or its columns in each other's place, say nothing of a shard.
    check("SELECT p.s, q.s FROM pairs p JOIN other_pairs q ON p.k = q.k", (2, 0)).await;
    check("SELECT p.s, q.s FROM pairs p JOIN other_pairs q ON p.k = q.v AND p.v = q.k", (1, 0)).await;
}

#[tokio::test]
async fn shards_that_tasks_cannot_be_dealt_to_are_not_waited_for() {
    // Three tasks read `twelve`, and 8 shards are no multiple of 3 tasks of 2 partitions.
    let sql = "SELECT v FROM few WHERE NOT EXISTS (SELECT 1 FROM twelve WHERE twelve.v = few.k)";
    let plan = plan(sql).await;
    assert!(plan.contains("3 tasks on"), "{plan}");
    assert_eq!(exchanges(&plan), (2, 0), "{plan}");
    // What else is in the query stays where it is.
    let sql = format!("{sql} AND v IN (SELECT t.v FROM t JOIN u ON t.k = u.k)");
    let plan = self::plan(&sql).await;
    assert!(plan.contains("4 tasks on"), "{plan}");
    assert!(exchanges(&plan).0 <= 4, "{plan}");
}

#[tokio::test]
async fn rows_of_one_text_meet_where_they_are() {
    for sql in [
        "SELECT k, v, sum(s) FROM names GROUP BY k, v",
        "SELECT DISTINCT k FROM names",
        "SELECT a.v, b.v FROM names a JOIN other_names b ON a.k = b.k",
        "SELECT v FROM names a WHERE NOT EXISTS (SELECT 1 FROM other_names b WHERE b.k = a.k)",
        "SELECT a.v, b.v FROM few_names a LEFT JOIN names b ON a.k = b.k",
        "SELECT v FROM few_names WHERE k NOT IN (SELECT k FROM names)",
    ] {
        check(sql, (0, 0)).await;
    }
    // A number as text comes to the shards of text.
    check("SELECT a.v, t.s FROM names a JOIN t ON a.k = CAST(t.v AS VARCHAR)", (1, 0)).await;
    check("SELECT a.v, t.s FROM few_names a LEFT JOIN t ON a.k = CAST(t.v AS VARCHAR)", (1, 0)).await;
    check("SELECT a.v, b.v FROM names a JOIN other_names b ON a.k = upper(b.k)", (1, 0)).await;
}

#[tokio::test]
async fn text_that_was_sharded_as_it_is_stored_moves() {
    check("SELECT k, v, sum(s) FROM old_names GROUP BY k, v", (1, 0)).await;
    check("SELECT a.v, b.v FROM names a JOIN old_names b ON a.k = b.k", (1, 0)).await;
    check("SELECT a.v, b.v FROM old_names a JOIN old_names b ON a.k = b.k", (2, 0)).await;
    check("SELECT a.v, b.v FROM few_names a LEFT JOIN old_names b ON a.k = b.k", (1, 0)).await;
    // Numbers are where they were.
    check("SELECT t.v, o.v FROM t JOIN old_t o ON t.k = o.k", (0, 0)).await;
}
