CREATE TABLE "_crm_columns" (
	"column_id" VARCHAR(255) NOT NULL, 
	"stream_id" VARCHAR(255) NOT NULL, 
	"property" TEXT NOT NULL, 
	"column_name" TEXT NOT NULL, 
	PRIMARY KEY ("column_id")
);

CREATE TABLE "_crm_commits" (
	"batch_id" VARCHAR(255) NOT NULL, 
	"committed_at" DATETIME NOT NULL, 
	PRIMARY KEY ("batch_id")
);

CREATE TABLE "_crm_coverage" (
	"interval_id" VARCHAR(255) NOT NULL, 
	"merchant" TEXT, 
	"action_types" TEXT, 
	"covered_from" DATETIME NOT NULL, 
	"covered_until" DATETIME NOT NULL, 
	PRIMARY KEY ("interval_id")
);

CREATE TABLE "_crm_fresh" (
	"_seq" INTEGER NOT NULL, 
	PRIMARY KEY ("_seq")
);

CREATE TABLE "_crm_staging_actions" (
	"_seq" INTEGER NOT NULL, 
	"action_id" VARCHAR(255), 
	"type" TEXT, 
	"tenant_id" VARCHAR(255), 
	"user_id" VARCHAR(255), 
	"award_id" VARCHAR(255), 
	"perk_id" VARCHAR(255), 
	"location_id" VARCHAR(255), 
	"occurred_at" DATETIME, 
	"effect" VARCHAR(255), 
	"points_available" NUMERIC(19, 4), 
	"points_added" NUMERIC(19, 4), 
	"points_redeemed" NUMERIC(19, 4), 
	"points_refunded" NUMERIC(19, 4), 
	"source" TEXT, 
	"environment" TEXT, 
	"payload" TEXT, 
	"loaded_at" DATETIME, 
	PRIMARY KEY ("_seq")
);

CREATE TABLE "_crm_staging_rejected_records" (
	"_seq" INTEGER NOT NULL, 
	"rejected_id" VARCHAR(255), 
	"stream" TEXT, 
	"reason" TEXT, 
	"input_line" BIGINT, 
	"payload" TEXT, 
	"rejected_at" DATETIME, 
	"run_id" VARCHAR(255), 
	"extracted_at" DATETIME, 
	PRIMARY KEY ("_seq")
);

CREATE TABLE "_crm_streams" (
	"stream_id" VARCHAR(255) NOT NULL, 
	"stream" TEXT NOT NULL, 
	"table_name" TEXT NOT NULL, 
	PRIMARY KEY ("stream_id")
);

CREATE TABLE "_crm_version" (
	"version" BIGINT NOT NULL
);

CREATE TABLE "actions" (
	"action_id" VARCHAR(255) NOT NULL, 
	"type" TEXT, 
	"tenant_id" VARCHAR(255), 
	"user_id" VARCHAR(255), 
	"award_id" VARCHAR(255), 
	"perk_id" VARCHAR(255), 
	"location_id" VARCHAR(255), 
	"occurred_at" DATETIME, 
	"effect" VARCHAR(255), 
	"points_available" NUMERIC(19, 4), 
	"points_added" NUMERIC(19, 4), 
	"points_redeemed" NUMERIC(19, 4), 
	"points_refunded" NUMERIC(19, 4), 
	"source" TEXT, 
	"environment" TEXT, 
	"payload" TEXT, 
	"loaded_at" DATETIME NOT NULL, 
	PRIMARY KEY ("action_id")
);

CREATE TABLE "award_balances" (
	"award_id" VARCHAR(255) NOT NULL, 
	"user_id" VARCHAR(255), 
	"perk_id" VARCHAR(255), 
	"points" NUMERIC(19, 4) NOT NULL, 
	"as_of" DATETIME NOT NULL, 
	"as_of_source" VARCHAR(255) NOT NULL, 
	"last_action_id" VARCHAR(255), 
	"earned_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"redeemed_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"refunded_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"action_count" BIGINT DEFAULT 0 NOT NULL, 
	"first_action_at" DATETIME, 
	"last_action_at" DATETIME, 
	"updated_at" DATETIME NOT NULL, 
	"first_action_id" VARCHAR(255), 
	"opening" NUMERIC(19, 4), 
	PRIMARY KEY ("award_id")
);

CREATE TABLE "awards" (
	"_id" VARCHAR(255) NOT NULL, 
	"points" NUMERIC(19, 4), 
	"user_id" VARCHAR(255), 
	"perk_id" VARCHAR(255), 
	"updated_at" DATETIME, 
	"_sdc_extra" TEXT, 
	"_sdc_extracted_at" DATETIME, 
	"_sdc_batched_at" DATETIME, 
	"_sdc_table_version" BIGINT, 
	"_sdc_deleted_at" DATETIME, 
	PRIMARY KEY ("_id")
);

CREATE TABLE "load_runs" (
	"run_id" VARCHAR(32) NOT NULL, 
	"stream" VARCHAR(63) NOT NULL, 
	"started_at" DATETIME NOT NULL, 
	"finished_at" DATETIME, 
	"exit_state" VARCHAR(255), 
	"seconds" DOUBLE NOT NULL, 
	"read" BIGINT NOT NULL, 
	"applied" BIGINT NOT NULL, 
	"duplicate" BIGINT NOT NULL, 
	"superseded" BIGINT NOT NULL, 
	"quarantined" BIGINT NOT NULL, 
	"ignored_activations" BIGINT, 
	PRIMARY KEY ("run_id", "stream")
);

CREATE TABLE "rejected_records" (
	"rejected_id" VARCHAR(255) NOT NULL, 
	"stream" TEXT NOT NULL, 
	"reason" TEXT NOT NULL, 
	"input_line" BIGINT NOT NULL, 
	"payload" TEXT NOT NULL, 
	"rejected_at" DATETIME NOT NULL, 
	"run_id" VARCHAR(255) NOT NULL, 
	"extracted_at" DATETIME, 
	PRIMARY KEY ("rejected_id")
);

CREATE VIEW "user_balances" AS SELECT "award_balances"."user_id", "award_balances"."perk_id", SUM(CAST(ROUND(("award_balances"."points") * 10000) AS INTEGER)) / 10000.0 AS "points", SUM(CAST(ROUND(("award_balances"."earned_total") * 10000) AS INTEGER)) / 10000.0 AS "earned_total", SUM(CAST(ROUND(("award_balances"."redeemed_total") * 10000) AS INTEGER)) / 10000.0 AS "redeemed_total", SUM(CAST(ROUND(("award_balances"."refunded_total") * 10000) AS INTEGER)) / 10000.0 AS "refunded_total", count(*) AS "award_count", CAST(sum("award_balances"."action_count") AS BIGINT) AS "action_count", max("award_balances"."as_of") AS "as_of", SUM(CAST(ROUND(("award_balances"."opening") * 10000) AS INTEGER)) / 10000.0 AS "opening", SUM(CAST(ROUND((ROUND(("award_balances"."points" - "award_balances"."opening") - (("award_balances"."earned_total" - "award_balances"."redeemed_total") + "award_balances"."refunded_total"), 4)) * 10000) AS INTEGER)) / 10000.0 AS "adjusted" 
FROM "award_balances" LEFT OUTER JOIN "awards" ON "awards"."_id" = "award_balances"."award_id" 
WHERE "awards"."_sdc_deleted_at" IS NULL GROUP BY "award_balances"."user_id", "award_balances"."perk_id";

CREATE VIEW "award_balance_drift" AS SELECT "award_balances"."award_id", "award_balances"."user_id", "award_balances"."perk_id", "award_balances"."points", ROUND(("award_balances"."earned_total" - "award_balances"."redeemed_total") + "award_balances"."refunded_total", 4) AS "explained", ROUND("award_balances"."points" - ROUND(("award_balances"."earned_total" - "award_balances"."redeemed_total") + "award_balances"."refunded_total", 4), 4) AS "unexplained", "award_balances"."as_of", "award_balances"."as_of_source", "awards"."points" AS "snapshot_points", coalesce("awards"."updated_at", "awards"."_sdc_extracted_at") AS "snapshot_as_of", "award_balances"."opening", ROUND(("award_balances"."points" - "award_balances"."opening") - (("award_balances"."earned_total" - "award_balances"."redeemed_total") + "award_balances"."refunded_total"), 4) AS "adjusted" 
FROM "award_balances" LEFT OUTER JOIN "awards" ON "awards"."_id" = "award_balances"."award_id";

CREATE TABLE "_crm_merged" (
	"award_id" VARCHAR(255) NOT NULL, 
	"user_id" VARCHAR(255), 
	"perk_id" VARCHAR(255), 
	"points" NUMERIC(19, 4) NOT NULL, 
	"as_of" DATETIME NOT NULL, 
	"as_of_source" VARCHAR(255) NOT NULL, 
	"last_action_id" VARCHAR(255), 
	"earned_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"redeemed_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"refunded_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"action_count" BIGINT DEFAULT 0 NOT NULL, 
	"first_action_at" DATETIME, 
	"last_action_at" DATETIME, 
	"updated_at" DATETIME NOT NULL, 
	"first_action_id" VARCHAR(255), 
	"opening" NUMERIC(19, 4)
);

DELETE FROM "_crm_version";

INSERT INTO "_crm_version" ("version") VALUES (5);
