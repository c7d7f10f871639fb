CREATE TABLE "_crm_columns" (
	"column_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"stream_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"property" TEXT NOT NULL, 
	"column_name" TEXT NOT NULL, 
	PRIMARY KEY ("column_id")
);

CREATE TABLE "_crm_commits" (
	"batch_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"committed_at" TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY ("batch_id")
);

CREATE TABLE "_crm_coverage" (
	"interval_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"merchant" TEXT, 
	"action_types" TEXT, 
	"covered_from" TIMESTAMP WITH TIME ZONE NOT NULL, 
	"covered_until" TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY ("interval_id")
);

CREATE UNLOGGED TABLE "_crm_fresh" (
	"_seq" BIGINT NOT NULL
);

CREATE UNLOGGED TABLE "_crm_staging_actions" (
	"_seq" BIGINT NOT NULL, 
	"action_id" VARCHAR(255) COLLATE "C", 
	"type" TEXT, 
	"tenant_id" VARCHAR(255) COLLATE "C", 
	"user_id" VARCHAR(255) COLLATE "C", 
	"award_id" VARCHAR(255) COLLATE "C", 
	"perk_id" VARCHAR(255) COLLATE "C", 
	"location_id" VARCHAR(255) COLLATE "C", 
	"occurred_at" TIMESTAMP WITH TIME ZONE, 
	"effect" VARCHAR(255) COLLATE "C", 
	"points_available" NUMERIC(19, 4), 
	"points_added" NUMERIC(19, 4), 
	"points_redeemed" NUMERIC(19, 4), 
	"points_refunded" NUMERIC(19, 4), 
	"source" TEXT, 
	"environment" TEXT, 
	"payload" JSON, 
	"loaded_at" TIMESTAMP WITH TIME ZONE
);

CREATE UNLOGGED TABLE "_crm_staging_rejected_records" (
	"_seq" BIGINT NOT NULL, 
	"rejected_id" VARCHAR(255) COLLATE "C", 
	"stream" TEXT, 
	"reason" TEXT, 
	"input_line" BIGINT, 
	"payload" TEXT, 
	"rejected_at" TIMESTAMP WITH TIME ZONE, 
	"run_id" VARCHAR(255) COLLATE "C", 
	"extracted_at" TIMESTAMP WITH TIME ZONE
);

CREATE TABLE "_crm_streams" (
	"stream_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"stream" TEXT NOT NULL, 
	"table_name" TEXT NOT NULL, 
	PRIMARY KEY ("stream_id")
);

CREATE TABLE "_crm_version" (
	"version" BIGINT NOT NULL
);

CREATE TABLE "actions" (
	"action_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"type" TEXT, 
	"tenant_id" VARCHAR(255) COLLATE "C", 
	"user_id" VARCHAR(255) COLLATE "C", 
	"award_id" VARCHAR(255) COLLATE "C", 
	"perk_id" VARCHAR(255) COLLATE "C", 
	"location_id" VARCHAR(255) COLLATE "C", 
	"occurred_at" TIMESTAMP WITH TIME ZONE, 
	"effect" VARCHAR(255) COLLATE "C", 
	"points_available" NUMERIC(19, 4), 
	"points_added" NUMERIC(19, 4), 
	"points_redeemed" NUMERIC(19, 4), 
	"points_refunded" NUMERIC(19, 4), 
	"source" TEXT, 
	"environment" TEXT, 
	"payload" JSON, 
	"loaded_at" TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY ("action_id")
);

CREATE TABLE "award_balances" (
	"award_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"user_id" VARCHAR(255) COLLATE "C", 
	"perk_id" VARCHAR(255) COLLATE "C", 
	"points" NUMERIC(19, 4) NOT NULL, 
	"as_of" TIMESTAMP WITH TIME ZONE NOT NULL, 
	"as_of_source" VARCHAR(255) COLLATE "C" NOT NULL, 
	"last_action_id" VARCHAR(255) COLLATE "C", 
	"earned_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"redeemed_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"refunded_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"action_count" BIGINT DEFAULT 0 NOT NULL, 
	"first_action_at" TIMESTAMP WITH TIME ZONE, 
	"last_action_at" TIMESTAMP WITH TIME ZONE, 
	"updated_at" TIMESTAMP WITH TIME ZONE NOT NULL, 
	"first_action_id" VARCHAR(255) COLLATE "C", 
	"opening" NUMERIC(19, 4), 
	PRIMARY KEY ("award_id")
);

CREATE TABLE "awards" (
	"_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"points" NUMERIC(19, 4), 
	"user_id" VARCHAR(255) COLLATE "C", 
	"perk_id" VARCHAR(255) COLLATE "C", 
	"updated_at" TIMESTAMP WITH TIME ZONE, 
	"_sdc_extra" JSON, 
	"_sdc_extracted_at" TIMESTAMP WITH TIME ZONE, 
	"_sdc_batched_at" TIMESTAMP WITH TIME ZONE, 
	"_sdc_table_version" BIGINT, 
	"_sdc_deleted_at" TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY ("_id")
);

CREATE TABLE "load_runs" (
	"run_id" VARCHAR(32) COLLATE "C" NOT NULL, 
	"stream" VARCHAR(63) COLLATE "C" NOT NULL, 
	"started_at" TIMESTAMP WITH TIME ZONE NOT NULL, 
	"finished_at" TIMESTAMP WITH TIME ZONE, 
	"exit_state" VARCHAR(255) COLLATE "C", 
	"seconds" NUMERIC NOT NULL, 
	"read" BIGINT NOT NULL, 
	"applied" BIGINT NOT NULL, 
	"duplicate" BIGINT NOT NULL, 
	"superseded" BIGINT NOT NULL, 
	"quarantined" BIGINT NOT NULL, 
	"ignored_activations" BIGINT, 
	PRIMARY KEY ("run_id", "stream")
);

CREATE TABLE "rejected_records" (
	"rejected_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"stream" TEXT NOT NULL, 
	"reason" TEXT NOT NULL, 
	"input_line" BIGINT NOT NULL, 
	"payload" TEXT NOT NULL, 
	"rejected_at" TIMESTAMP WITH TIME ZONE NOT NULL, 
	"run_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"extracted_at" TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY ("rejected_id")
);

CREATE OR REPLACE VIEW "user_balances" AS SELECT "award_balances"."user_id", "award_balances"."perk_id", CAST(sum("award_balances"."points") AS NUMERIC(19, 4)) AS "points", CAST(sum("award_balances"."earned_total") AS NUMERIC(19, 4)) AS "earned_total", CAST(sum("award_balances"."redeemed_total") AS NUMERIC(19, 4)) AS "redeemed_total", CAST(sum("award_balances"."refunded_total") AS NUMERIC(19, 4)) AS "refunded_total", count(*) AS "award_count", CAST(sum("award_balances"."action_count") AS BIGINT) AS "action_count", max("award_balances"."as_of") AS "as_of", CAST(sum("award_balances"."opening") AS NUMERIC(19, 4)) AS "opening", CAST(sum((("award_balances"."points" - "award_balances"."opening") - (("award_balances"."earned_total" - "award_balances"."redeemed_total") + "award_balances"."refunded_total"))) AS NUMERIC(19, 4)) AS "adjusted" 
FROM "award_balances" LEFT OUTER JOIN "awards" ON "awards"."_id" = "award_balances"."award_id" 
WHERE "awards"."_sdc_deleted_at" IS NULL GROUP BY "award_balances"."user_id", "award_balances"."perk_id";

CREATE OR REPLACE VIEW "award_balance_drift" AS SELECT "award_balances"."award_id", "award_balances"."user_id", "award_balances"."perk_id", "award_balances"."points", (("award_balances"."earned_total" - "award_balances"."redeemed_total") + "award_balances"."refunded_total") AS "explained", ("award_balances"."points" - (("award_balances"."earned_total" - "award_balances"."redeemed_total") + "award_balances"."refunded_total")) AS "unexplained", "award_balances"."as_of", "award_balances"."as_of_source", "awards"."points" AS "snapshot_points", coalesce("awards"."updated_at", "awards"."_sdc_extracted_at") AS "snapshot_as_of", "award_balances"."opening", (("award_balances"."points" - "award_balances"."opening") - (("award_balances"."earned_total" - "award_balances"."redeemed_total") + "award_balances"."refunded_total")) AS "adjusted" 
FROM "award_balances" LEFT OUTER JOIN "awards" ON "awards"."_id" = "award_balances"."award_id";

CREATE UNLOGGED TABLE "_crm_merged" (
	"award_id" VARCHAR(255) COLLATE "C" NOT NULL, 
	"user_id" VARCHAR(255) COLLATE "C", 
	"perk_id" VARCHAR(255) COLLATE "C", 
	"points" NUMERIC(19, 4) NOT NULL, 
	"as_of" TIMESTAMP WITH TIME ZONE NOT NULL, 
	"as_of_source" VARCHAR(255) COLLATE "C" NOT NULL, 
	"last_action_id" VARCHAR(255) COLLATE "C", 
	"earned_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"redeemed_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"refunded_total" NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	"action_count" BIGINT DEFAULT 0 NOT NULL, 
	"first_action_at" TIMESTAMP WITH TIME ZONE, 
	"last_action_at" TIMESTAMP WITH TIME ZONE, 
	"updated_at" TIMESTAMP WITH TIME ZONE NOT NULL, 
	"first_action_id" VARCHAR(255) COLLATE "C", 
	"opening" NUMERIC(19, 4)
);

DELETE FROM "_crm_version";

INSERT INTO "_crm_version" ("version") VALUES (5);
