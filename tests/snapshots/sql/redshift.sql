-- the tables and views

CREATE TABLE _crm_commits (
	batch_id VARCHAR(1020) NOT NULL, 
	committed_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (batch_id)
);
CREATE TABLE _crm_fresh (
	_seq BIGINT NOT NULL, 
	PRIMARY KEY (_seq)
);
CREATE TABLE _crm_merged (
	award_id VARCHAR(1020) NOT NULL, 
	user_id VARCHAR(1020), 
	perk_id VARCHAR(1020), 
	points NUMERIC(19, 4) NOT NULL, 
	as_of TIMESTAMP WITH TIME ZONE NOT NULL, 
	as_of_source VARCHAR(1020) NOT NULL, 
	last_action_id VARCHAR(1020), 
	earned_total NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	redeemed_total NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	refunded_total NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	action_count BIGINT DEFAULT 0 NOT NULL, 
	first_action_at TIMESTAMP WITH TIME ZONE, 
	last_action_at TIMESTAMP WITH TIME ZONE, 
	updated_at TIMESTAMP WITH TIME ZONE NOT NULL
);
CREATE TABLE _crm_staging_actions (
	_seq BIGINT NOT NULL, 
	action_id VARCHAR(1020), 
	type VARCHAR(65535), 
	tenant_id VARCHAR(1020), 
	user_id VARCHAR(1020), 
	award_id VARCHAR(1020), 
	perk_id VARCHAR(1020), 
	location_id VARCHAR(1020), 
	occurred_at TIMESTAMP WITH TIME ZONE, 
	effect VARCHAR(1020), 
	points_available NUMERIC(19, 4), 
	points_added NUMERIC(19, 4), 
	points_redeemed NUMERIC(19, 4), 
	points_refunded NUMERIC(19, 4), 
	source VARCHAR(65535), 
	environment VARCHAR(65535), 
	content_hash VARCHAR(1020), 
	payload VARCHAR(65535), 
	loaded_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (_seq)
);
CREATE TABLE _crm_staging_rejected_records (
	_seq BIGINT NOT NULL, 
	rejected_id VARCHAR(1020), 
	stream VARCHAR(65535), 
	reason VARCHAR(65535), 
	input_line BIGINT, 
	payload VARCHAR(65535), 
	rejected_at TIMESTAMP WITH TIME ZONE, 
	run_id VARCHAR(1020), 
	extracted_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (_seq)
);
CREATE TABLE _crm_version (
	version BIGINT NOT NULL
);
CREATE TABLE actions (
	action_id VARCHAR(1020) NOT NULL, 
	type VARCHAR(65535), 
	tenant_id VARCHAR(1020), 
	user_id VARCHAR(1020), 
	award_id VARCHAR(1020), 
	perk_id VARCHAR(1020), 
	location_id VARCHAR(1020), 
	occurred_at TIMESTAMP WITH TIME ZONE, 
	effect VARCHAR(1020), 
	points_available NUMERIC(19, 4), 
	points_added NUMERIC(19, 4), 
	points_redeemed NUMERIC(19, 4), 
	points_refunded NUMERIC(19, 4), 
	source VARCHAR(65535), 
	environment VARCHAR(65535), 
	content_hash VARCHAR(1020) NOT NULL, 
	payload VARCHAR(65535), 
	loaded_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (action_id)
);
CREATE TABLE award_balances (
	award_id VARCHAR(1020) NOT NULL, 
	user_id VARCHAR(1020), 
	perk_id VARCHAR(1020), 
	points NUMERIC(19, 4) NOT NULL, 
	as_of TIMESTAMP WITH TIME ZONE NOT NULL, 
	as_of_source VARCHAR(1020) NOT NULL, 
	last_action_id VARCHAR(1020), 
	earned_total NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	redeemed_total NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	refunded_total NUMERIC(19, 4) DEFAULT 0 NOT NULL, 
	action_count BIGINT DEFAULT 0 NOT NULL, 
	first_action_at TIMESTAMP WITH TIME ZONE, 
	last_action_at TIMESTAMP WITH TIME ZONE, 
	updated_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	PRIMARY KEY (award_id)
);
CREATE TABLE awards (
	_id VARCHAR(1020) NOT NULL, 
	points NUMERIC(19, 4), 
	user_id VARCHAR(1020), 
	perk_id VARCHAR(1020), 
	updated_at TIMESTAMP WITH TIME ZONE, 
	_sdc_extra VARCHAR(65535), 
	_sdc_extracted_at TIMESTAMP WITH TIME ZONE, 
	_sdc_batched_at TIMESTAMP WITH TIME ZONE, 
	_sdc_table_version BIGINT, 
	_sdc_deleted_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (_id)
);
CREATE TABLE load_runs (
	run_id VARCHAR(1020) NOT NULL, 
	stream VARCHAR(1020) NOT NULL, 
	started_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	finished_at TIMESTAMP WITH TIME ZONE, 
	exit_state VARCHAR(1020), 
	seconds DOUBLE PRECISION NOT NULL, 
	read BIGINT NOT NULL, 
	applied BIGINT NOT NULL, 
	duplicate BIGINT NOT NULL, 
	superseded BIGINT NOT NULL, 
	quarantined BIGINT NOT NULL, 
	PRIMARY KEY (run_id, stream)
);
CREATE TABLE rejected_records (
	rejected_id VARCHAR(1020) NOT NULL, 
	stream VARCHAR(65535) NOT NULL, 
	reason VARCHAR(65535) NOT NULL, 
	input_line BIGINT NOT NULL, 
	payload VARCHAR(65535) NOT NULL, 
	rejected_at TIMESTAMP WITH TIME ZONE NOT NULL, 
	run_id VARCHAR(1020) NOT NULL, 
	extracted_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (rejected_id)
);
CREATE OR REPLACE VIEW user_balances AS SELECT award_balances.user_id, award_balances.perk_id, CAST(sum(award_balances.points) AS NUMERIC(19, 4)) AS points, CAST(sum(award_balances.earned_total) AS NUMERIC(19, 4)) AS earned_total, CAST(sum(award_balances.redeemed_total) AS NUMERIC(19, 4)) AS redeemed_total, CAST(sum(award_balances.refunded_total) AS NUMERIC(19, 4)) AS refunded_total, count(*) AS award_count, CAST(sum(award_balances.action_count) AS BIGINT) AS action_count, max(award_balances.as_of) AS as_of 
FROM award_balances LEFT OUTER JOIN awards ON awards._id = award_balances.award_id 
WHERE awards._sdc_deleted_at IS NULL GROUP BY award_balances.user_id, award_balances.perk_id;
CREATE OR REPLACE VIEW award_balance_drift AS SELECT award_balances.award_id, award_balances.user_id, award_balances.perk_id, award_balances.points, ((award_balances.earned_total - award_balances.redeemed_total) + award_balances.refunded_total) AS explained, (award_balances.points - ((award_balances.earned_total - award_balances.redeemed_total) + award_balances.refunded_total)) AS unexplained, award_balances.as_of, award_balances.as_of_source, awards.points AS snapshot_points, coalesce(awards.updated_at, awards._sdc_extracted_at) AS snapshot_as_of 
FROM award_balances LEFT OUTER JOIN awards ON awards._id = award_balances.award_id;

-- a batch of actions

DELETE FROM _crm_fresh;
DELETE FROM _crm_staging_actions;
INSERT INTO _crm_staging_actions (_seq, action_id, type, tenant_id, user_id, award_id, perk_id, location_id, occurred_at, effect, points_available, points_added, points_redeemed, points_refunded, source, environment, content_hash, payload, loaded_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s);
INSERT INTO _crm_fresh (_seq) SELECT min(_crm_staging_actions._seq) AS min_1 
FROM _crm_staging_actions LEFT OUTER JOIN actions ON actions.action_id = _crm_staging_actions.action_id 
WHERE actions.action_id IS NULL GROUP BY _crm_staging_actions.action_id;
SELECT count(*) AS count_1 
FROM _crm_fresh;
INSERT INTO actions (action_id, type, tenant_id, user_id, award_id, perk_id, location_id, occurred_at, effect, points_available, points_added, points_redeemed, points_refunded, source, environment, content_hash, payload, loaded_at) SELECT fresh_rows.action_id, fresh_rows.type, fresh_rows.tenant_id, fresh_rows.user_id, fresh_rows.award_id, fresh_rows.perk_id, fresh_rows.location_id, fresh_rows.occurred_at, fresh_rows.effect, fresh_rows.points_available, fresh_rows.points_added, fresh_rows.points_redeemed, fresh_rows.points_refunded, fresh_rows.source, fresh_rows.environment, fresh_rows.content_hash, fresh_rows.payload, fresh_rows.loaded_at 
FROM (SELECT _crm_staging_actions.action_id AS action_id, _crm_staging_actions.type AS type, _crm_staging_actions.tenant_id AS tenant_id, _crm_staging_actions.user_id AS user_id, _crm_staging_actions.award_id AS award_id, _crm_staging_actions.perk_id AS perk_id, _crm_staging_actions.location_id AS location_id, _crm_staging_actions.occurred_at AS occurred_at, _crm_staging_actions.effect AS effect, _crm_staging_actions.points_available AS points_available, _crm_staging_actions.points_added AS points_added, _crm_staging_actions.points_redeemed AS points_redeemed, _crm_staging_actions.points_refunded AS points_refunded, _crm_staging_actions.source AS source, _crm_staging_actions.environment AS environment, _crm_staging_actions.content_hash AS content_hash, _crm_staging_actions.payload AS payload, _crm_staging_actions.loaded_at AS loaded_at 
FROM _crm_staging_actions JOIN _crm_fresh ON _crm_fresh._seq = _crm_staging_actions._seq) AS fresh_rows;
DELETE FROM _crm_merged;
INSERT INTO _crm_merged (award_id, user_id, perk_id, points, as_of, as_of_source, last_action_id, earned_total, redeemed_total, refunded_total, action_count, first_action_at, last_action_at, updated_at) SELECT arrived.award_id, coalesce(CASE WHEN (award_balances.as_of IS NULL OR award_balances.as_of < arrived.as_of OR award_balances.as_of = arrived.as_of AND (award_balances.as_of_source = 'award' OR arrived.as_of_source = 'action' AND award_balances.last_action_id < arrived.last_action_id)) THEN arrived.user_id ELSE award_balances.user_id END, arrived.user_id, award_balances.user_id) AS user_id, coalesce(CASE WHEN (award_balances.as_of IS NULL OR award_balances.as_of < arrived.as_of OR award_balances.as_of = arrived.as_of AND (award_balances.as_of_source = 'award' OR arrived.as_of_source = 'action' AND award_balances.last_action_id < arrived.last_action_id)) THEN arrived.perk_id ELSE award_balances.perk_id END, arrived.perk_id, award_balances.perk_id) AS perk_id, CASE WHEN (award_balances.as_of IS NULL OR award_balances.as_of < arrived.as_of OR award_balances.as_of = arrived.as_of AND (award_balances.as_of_source = 'award' OR arrived.as_of_source = 'action' AND award_balances.last_action_id < arrived.last_action_id)) THEN arrived.points ELSE award_balances.points END AS points, CASE WHEN (award_balances.as_of IS NULL OR award_balances.as_of < arrived.as_of OR award_balances.as_of = arrived.as_of AND (award_balances.as_of_source = 'award' OR arrived.as_of_source = 'action' AND award_balances.last_action_id < arrived.last_action_id)) THEN arrived.as_of ELSE award_balances.as_of END AS as_of, CASE WHEN (award_balances.as_of IS NULL OR award_balances.as_of < arrived.as_of OR award_balances.as_of = arrived.as_of AND (award_balances.as_of_source = 'award' OR arrived.as_of_source = 'action' AND award_balances.last_action_id < arrived.last_action_id)) THEN arrived.as_of_source ELSE award_balances.as_of_source END AS as_of_source, CASE WHEN (award_balances.last_action_at IS NULL OR award_balances.last_action_at < arrived.last_action_at OR award_balances.last_action_at = arrived.last_action_at AND award_balances.last_action_id < arrived.last_action_id) THEN arrived.last_action_id ELSE award_balances.last_action_id END AS last_action_id, (coalesce(arrived.earned_total, 0) + coalesce(award_balances.earned_total, 0)) AS earned_total, (coalesce(arrived.redeemed_total, 0) + coalesce(award_balances.redeemed_total, 0)) AS redeemed_total, (coalesce(arrived.refunded_total, 0) + coalesce(award_balances.refunded_total, 0)) AS refunded_total, coalesce(arrived.action_count, 0) + coalesce(award_balances.action_count, 0) AS action_count, CASE WHEN (award_balances.first_action_at IS NULL OR award_balances.first_action_at > arrived.first_action_at) THEN arrived.first_action_at ELSE award_balances.first_action_at END AS first_action_at, CASE WHEN (award_balances.last_action_at IS NULL OR award_balances.last_action_at < arrived.last_action_at) THEN arrived.last_action_at ELSE award_balances.last_action_at END AS last_action_at, CASE WHEN (award_balances.updated_at IS NULL OR award_balances.updated_at < arrived.updated_at) THEN arrived.updated_at ELSE award_balances.updated_at END AS updated_at 
FROM (SELECT ranked.award_id AS award_id, coalesce(max(CASE WHEN (ranked.rank = %s) THEN ranked.user_id END), max(ranked.user_id)) AS user_id, coalesce(max(CASE WHEN (ranked.rank = %s) THEN ranked.perk_id END), max(ranked.perk_id)) AS perk_id, max(CASE WHEN (ranked.rank = %s) THEN ranked.points_available END) AS points, max(ranked.occurred_at) AS as_of, CAST('action' AS VARCHAR(1020)) AS as_of_source, max(CASE WHEN (ranked.rank = %s) THEN ranked.action_id END) AS last_action_id, CAST(sum(CASE WHEN (ranked.effect = 'earned') THEN ranked.points_added ELSE CAST(0 AS NUMERIC(19, 4)) END) AS NUMERIC(19, 4)) AS earned_total, CAST(sum(CASE WHEN (ranked.effect = 'redeemed') THEN ranked.points_redeemed ELSE CAST(0 AS NUMERIC(19, 4)) END) AS NUMERIC(19, 4)) AS redeemed_total, CAST(sum(CASE WHEN (ranked.effect = 'refunded') THEN ranked.points_refunded ELSE CAST(0 AS NUMERIC(19, 4)) END) AS NUMERIC(19, 4)) AS refunded_total, CAST(count(*) AS BIGINT) AS action_count, min(ranked.occurred_at) AS first_action_at, max(ranked.occurred_at) AS last_action_at, max(ranked.loaded_at) AS updated_at 
FROM (SELECT fresh_rows.award_id AS award_id, fresh_rows.user_id AS user_id, fresh_rows.perk_id AS perk_id, fresh_rows.action_id AS action_id, fresh_rows.occurred_at AS occurred_at, fresh_rows.effect AS effect, fresh_rows.points_available AS points_available, fresh_rows.loaded_at AS loaded_at, fresh_rows.points_added AS points_added, fresh_rows.points_redeemed AS points_redeemed, fresh_rows.points_refunded AS points_refunded, row_number() OVER (PARTITION BY fresh_rows.award_id ORDER BY fresh_rows.occurred_at DESC, fresh_rows.action_id DESC) AS rank 
FROM (SELECT _crm_staging_actions.action_id AS action_id, _crm_staging_actions.type AS type, _crm_staging_actions.tenant_id AS tenant_id, _crm_staging_actions.user_id AS user_id, _crm_staging_actions.award_id AS award_id, _crm_staging_actions.perk_id AS perk_id, _crm_staging_actions.location_id AS location_id, _crm_staging_actions.occurred_at AS occurred_at, _crm_staging_actions.effect AS effect, _crm_staging_actions.points_available AS points_available, _crm_staging_actions.points_added AS points_added, _crm_staging_actions.points_redeemed AS points_redeemed, _crm_staging_actions.points_refunded AS points_refunded, _crm_staging_actions.source AS source, _crm_staging_actions.environment AS environment, _crm_staging_actions.content_hash AS content_hash, _crm_staging_actions.payload AS payload, _crm_staging_actions.loaded_at AS loaded_at 
FROM _crm_staging_actions JOIN _crm_fresh ON _crm_fresh._seq = _crm_staging_actions._seq) AS fresh_rows 
WHERE fresh_rows.effect IS NOT NULL) AS ranked GROUP BY ranked.award_id) AS arrived LEFT OUTER JOIN award_balances ON award_balances.award_id = arrived.award_id;
DELETE FROM award_balances WHERE award_balances.award_id IN (SELECT _crm_merged.award_id 
FROM _crm_merged);
INSERT INTO award_balances (award_id, user_id, perk_id, points, as_of, as_of_source, last_action_id, earned_total, redeemed_total, refunded_total, action_count, first_action_at, last_action_at, updated_at) SELECT _crm_merged.award_id, _crm_merged.user_id, _crm_merged.perk_id, _crm_merged.points, _crm_merged.as_of, _crm_merged.as_of_source, _crm_merged.last_action_id, _crm_merged.earned_total, _crm_merged.redeemed_total, _crm_merged.refunded_total, _crm_merged.action_count, _crm_merged.first_action_at, _crm_merged.last_action_at, _crm_merged.updated_at 
FROM _crm_merged;
DELETE FROM _crm_merged;
SELECT _crm_staging_actions._seq, CAST(_crm_staging_actions.payload AS VARCHAR(65535)) AS payload 
FROM _crm_staging_actions JOIN actions ON actions.action_id = _crm_staging_actions.action_id 
WHERE actions.content_hash != _crm_staging_actions.content_hash ORDER BY _crm_staging_actions._seq;
DELETE FROM _crm_fresh;
DELETE FROM _crm_staging_actions;
DELETE FROM load_runs WHERE load_runs.run_id = %s;
INSERT INTO load_runs (run_id, stream, started_at, finished_at, exit_state, seconds, read, applied, duplicate, superseded, quarantined) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s);

-- a batch of awards

CREATE TABLE awards (
	_id VARCHAR(1020) NOT NULL, 
	points NUMERIC(19, 4), 
	user_id VARCHAR(1020), 
	perk_id VARCHAR(1020), 
	updated_at TIMESTAMP WITH TIME ZONE, 
	_sdc_extra VARCHAR(65535), 
	_sdc_extracted_at TIMESTAMP WITH TIME ZONE, 
	_sdc_batched_at TIMESTAMP WITH TIME ZONE, 
	_sdc_table_version BIGINT, 
	_sdc_deleted_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (_id)
);
CREATE TABLE _crm_staging_awards (
	_seq BIGINT NOT NULL, 
	_id VARCHAR(1020), 
	points NUMERIC(19, 4), 
	user_id VARCHAR(1020), 
	perk_id VARCHAR(1020), 
	updated_at TIMESTAMP WITH TIME ZONE, 
	_sdc_extra VARCHAR(65535), 
	_sdc_extracted_at TIMESTAMP WITH TIME ZONE, 
	_sdc_batched_at TIMESTAMP WITH TIME ZONE, 
	_sdc_table_version BIGINT, 
	_sdc_deleted_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (_seq)
);
DELETE FROM _crm_fresh;
DELETE FROM _crm_staging_awards;
INSERT INTO _crm_staging_awards (_seq, _id, points, user_id, perk_id, updated_at, _sdc_extra, _sdc_extracted_at, _sdc_batched_at, _sdc_table_version, _sdc_deleted_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s);
UPDATE _crm_staging_awards SET user_id=coalesce(_crm_staging_awards.user_id, told.user_id), perk_id=coalesce(_crm_staging_awards.perk_id, told.perk_id) FROM (SELECT awards._id AS award_id, max(awards.user_id) AS user_id, max(awards.perk_id) AS perk_id 
FROM awards 
WHERE awards.points IS NOT NULL AND awards._id IN (SELECT _crm_staging_awards._id 
FROM _crm_staging_awards) GROUP BY awards._id) AS told WHERE _crm_staging_awards._id = told.award_id AND (_crm_staging_awards.user_id IS NULL AND told.user_id IS NOT NULL OR _crm_staging_awards.perk_id IS NULL AND told.perk_id IS NOT NULL);
INSERT INTO _crm_fresh (_seq) SELECT ranked._seq 
FROM (SELECT _crm_staging_awards._seq AS _seq, _crm_staging_awards._id AS _id, _crm_staging_awards.points AS points, _crm_staging_awards.user_id AS user_id, _crm_staging_awards.perk_id AS perk_id, _crm_staging_awards.updated_at AS updated_at, _crm_staging_awards._sdc_extra AS _sdc_extra, _crm_staging_awards._sdc_extracted_at AS _sdc_extracted_at, _crm_staging_awards._sdc_batched_at AS _sdc_batched_at, _crm_staging_awards._sdc_table_version AS _sdc_table_version, _crm_staging_awards._sdc_deleted_at AS _sdc_deleted_at, row_number() OVER (PARTITION BY _crm_staging_awards._id ORDER BY CASE WHEN (_crm_staging_awards.points IS NULL) THEN %s ELSE %s END DESC, coalesce(_crm_staging_awards.updated_at, _crm_staging_awards._sdc_extracted_at) DESC, _crm_staging_awards._sdc_extracted_at DESC, _crm_staging_awards._seq DESC) AS _rank 
FROM _crm_staging_awards) AS ranked LEFT OUTER JOIN awards ON awards._id = ranked._id 
WHERE ranked._rank = %s AND (awards._id IS NULL OR (CASE WHEN (awards.points IS NULL) THEN %s ELSE %s END IS NULL OR CASE WHEN (ranked.points IS NULL) THEN %s ELSE %s END > CASE WHEN (awards.points IS NULL) THEN %s ELSE %s END OR CASE WHEN (ranked.points IS NULL) THEN %s ELSE %s END = CASE WHEN (awards.points IS NULL) THEN %s ELSE %s END AND (coalesce(awards.updated_at, awards._sdc_extracted_at) IS NULL OR coalesce(ranked.updated_at, ranked._sdc_extracted_at) > coalesce(awards.updated_at, awards._sdc_extracted_at) OR coalesce(ranked.updated_at, ranked._sdc_extracted_at) = coalesce(awards.updated_at, awards._sdc_extracted_at) AND (awards._sdc_extracted_at IS NULL OR ranked._sdc_extracted_at >= awards._sdc_extracted_at))) AND NOT (awards._id IS NOT DISTINCT FROM ranked._id AND awards.points IS NOT DISTINCT FROM ranked.points AND awards.user_id IS NOT DISTINCT FROM ranked.user_id AND awards.perk_id IS NOT DISTINCT FROM ranked.perk_id AND awards.updated_at IS NOT DISTINCT FROM ranked.updated_at AND CAST(awards._sdc_extra AS VARCHAR(65535)) IS NOT DISTINCT FROM CAST(ranked._sdc_extra AS VARCHAR(65535)) AND awards._sdc_extracted_at IS NOT DISTINCT FROM ranked._sdc_extracted_at AND awards._sdc_table_version IS NOT DISTINCT FROM ranked._sdc_table_version AND awards._sdc_deleted_at IS NOT DISTINCT FROM ranked._sdc_deleted_at));
SELECT count(*) AS count_1 
FROM (SELECT fresh_rows._id AS _id, fresh_rows.points AS points, fresh_rows.user_id AS user_id, fresh_rows.perk_id AS perk_id, fresh_rows.updated_at AS updated_at, fresh_rows._sdc_extra AS _sdc_extra, fresh_rows._sdc_extracted_at AS _sdc_extracted_at, fresh_rows._sdc_batched_at AS _sdc_batched_at, fresh_rows._sdc_table_version AS _sdc_table_version, fresh_rows._sdc_deleted_at AS _sdc_deleted_at 
FROM (SELECT _crm_staging_awards._id AS _id, _crm_staging_awards.points AS points, _crm_staging_awards.user_id AS user_id, _crm_staging_awards.perk_id AS perk_id, _crm_staging_awards.updated_at AS updated_at, _crm_staging_awards._sdc_extra AS _sdc_extra, _crm_staging_awards._sdc_extracted_at AS _sdc_extracted_at, _crm_staging_awards._sdc_batched_at AS _sdc_batched_at, _crm_staging_awards._sdc_table_version AS _sdc_table_version, _crm_staging_awards._sdc_deleted_at AS _sdc_deleted_at 
FROM _crm_staging_awards JOIN _crm_fresh ON _crm_fresh._seq = _crm_staging_awards._seq) AS fresh_rows LEFT OUTER JOIN awards ON awards._id = fresh_rows._id 
WHERE awards._id IS NULL OR NOT (awards._id IS NOT DISTINCT FROM fresh_rows._id AND awards.points IS NOT DISTINCT FROM fresh_rows.points AND awards.user_id IS NOT DISTINCT FROM fresh_rows.user_id AND awards.perk_id IS NOT DISTINCT FROM fresh_rows.perk_id AND awards.updated_at IS NOT DISTINCT FROM fresh_rows.updated_at AND CAST(awards._sdc_extra AS VARCHAR(65535)) IS NOT DISTINCT FROM CAST(fresh_rows._sdc_extra AS VARCHAR(65535)) AND awards._sdc_deleted_at IS NOT DISTINCT FROM fresh_rows._sdc_deleted_at)) AS changed_rows;
DELETE FROM _crm_merged;
INSERT INTO _crm_merged (award_id, user_id, perk_id, points, as_of, as_of_source, last_action_id, earned_total, redeemed_total, refunded_total, action_count, first_action_at, last_action_at, updated_at) SELECT arrived.award_id, coalesce(CASE WHEN (award_balances.as_of IS NULL OR award_balances.as_of < arrived.as_of OR award_balances.as_of = arrived.as_of AND (award_balances.as_of_source = 'award' OR arrived.as_of_source = 'action' AND award_balances.last_action_id < arrived.last_action_id)) THEN arrived.user_id ELSE award_balances.user_id END, arrived.user_id, award_balances.user_id) AS user_id, coalesce(CASE WHEN (award_balances.as_of IS NULL OR award_balances.as_of < arrived.as_of OR award_balances.as_of = arrived.as_of AND (award_balances.as_of_source = 'award' OR arrived.as_of_source = 'action' AND award_balances.last_action_id < arrived.last_action_id)) THEN arrived.perk_id ELSE award_balances.perk_id END, arrived.perk_id, award_balances.perk_id) AS perk_id, CASE WHEN (award_balances.as_of IS NULL OR award_balances.as_of < arrived.as_of OR award_balances.as_of = arrived.as_of AND (award_balances.as_of_source = 'award' OR arrived.as_of_source = 'action' AND award_balances.last_action_id < arrived.last_action_id)) THEN arrived.points ELSE award_balances.points END AS points, CASE WHEN (award_balances.as_of IS NULL OR award_balances.as_of < arrived.as_of OR award_balances.as_of = arrived.as_of AND (award_balances.as_of_source = 'award' OR arrived.as_of_source = 'action' AND award_balances.last_action_id < arrived.last_action_id)) THEN arrived.as_of ELSE award_balances.as_of END AS as_of, CASE WHEN (award_balances.as_of IS NULL OR award_balances.as_of < arrived.as_of OR award_balances.as_of = arrived.as_of AND (award_balances.as_of_source = 'award' OR arrived.as_of_source = 'action' AND award_balances.last_action_id < arrived.last_action_id)) THEN arrived.as_of_source ELSE award_balances.as_of_source END AS as_of_source, CASE WHEN (award_balances.last_action_at IS NULL OR award_balances.last_action_at < arrived.last_action_at OR award_balances.last_action_at = arrived.last_action_at AND award_balances.last_action_id < arrived.last_action_id) THEN arrived.last_action_id ELSE award_balances.last_action_id END AS last_action_id, (coalesce(arrived.earned_total, 0) + coalesce(award_balances.earned_total, 0)) AS earned_total, (coalesce(arrived.redeemed_total, 0) + coalesce(award_balances.redeemed_total, 0)) AS redeemed_total, (coalesce(arrived.refunded_total, 0) + coalesce(award_balances.refunded_total, 0)) AS refunded_total, coalesce(arrived.action_count, 0) + coalesce(award_balances.action_count, 0) AS action_count, CASE WHEN (award_balances.first_action_at IS NULL OR award_balances.first_action_at > arrived.first_action_at) THEN arrived.first_action_at ELSE award_balances.first_action_at END AS first_action_at, CASE WHEN (award_balances.last_action_at IS NULL OR award_balances.last_action_at < arrived.last_action_at) THEN arrived.last_action_at ELSE award_balances.last_action_at END AS last_action_at, CASE WHEN (award_balances.updated_at IS NULL OR arrived.updated_at > award_balances.updated_at) THEN arrived.updated_at ELSE award_balances.updated_at END AS updated_at 
FROM (SELECT fresh_rows._id AS award_id, fresh_rows.user_id AS user_id, fresh_rows.perk_id AS perk_id, fresh_rows.points AS points, coalesce(fresh_rows.updated_at, fresh_rows._sdc_extracted_at) AS as_of, CAST('award' AS VARCHAR(1020)) AS as_of_source, CAST(NULL AS VARCHAR(1020)) AS last_action_id, CAST(0 AS NUMERIC(19, 4)) AS earned_total, CAST(0 AS NUMERIC(19, 4)) AS redeemed_total, CAST(0 AS NUMERIC(19, 4)) AS refunded_total, CAST(0 AS BIGINT) AS action_count, CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS first_action_at, CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS last_action_at, fresh_rows._sdc_batched_at AS updated_at 
FROM (SELECT _crm_staging_awards._id AS _id, _crm_staging_awards.points AS points, _crm_staging_awards.user_id AS user_id, _crm_staging_awards.perk_id AS perk_id, _crm_staging_awards.updated_at AS updated_at, _crm_staging_awards._sdc_extra AS _sdc_extra, _crm_staging_awards._sdc_extracted_at AS _sdc_extracted_at, _crm_staging_awards._sdc_batched_at AS _sdc_batched_at, _crm_staging_awards._sdc_table_version AS _sdc_table_version, _crm_staging_awards._sdc_deleted_at AS _sdc_deleted_at 
FROM _crm_staging_awards JOIN _crm_fresh ON _crm_fresh._seq = _crm_staging_awards._seq) AS fresh_rows 
WHERE fresh_rows.points IS NOT NULL AND (fresh_rows.updated_at IS NULL OR fresh_rows._id IN (SELECT changed_rows._id 
FROM (SELECT fresh_rows._id AS _id, fresh_rows.points AS points, fresh_rows.user_id AS user_id, fresh_rows.perk_id AS perk_id, fresh_rows.updated_at AS updated_at, fresh_rows._sdc_extra AS _sdc_extra, fresh_rows._sdc_extracted_at AS _sdc_extracted_at, fresh_rows._sdc_batched_at AS _sdc_batched_at, fresh_rows._sdc_table_version AS _sdc_table_version, fresh_rows._sdc_deleted_at AS _sdc_deleted_at 
FROM (SELECT _crm_staging_awards._id AS _id, _crm_staging_awards.points AS points, _crm_staging_awards.user_id AS user_id, _crm_staging_awards.perk_id AS perk_id, _crm_staging_awards.updated_at AS updated_at, _crm_staging_awards._sdc_extra AS _sdc_extra, _crm_staging_awards._sdc_extracted_at AS _sdc_extracted_at, _crm_staging_awards._sdc_batched_at AS _sdc_batched_at, _crm_staging_awards._sdc_table_version AS _sdc_table_version, _crm_staging_awards._sdc_deleted_at AS _sdc_deleted_at 
FROM _crm_staging_awards JOIN _crm_fresh ON _crm_fresh._seq = _crm_staging_awards._seq) AS fresh_rows LEFT OUTER JOIN awards ON awards._id = fresh_rows._id 
WHERE awards._id IS NULL OR NOT (awards._id IS NOT DISTINCT FROM fresh_rows._id AND awards.points IS NOT DISTINCT FROM fresh_rows.points AND awards.user_id IS NOT DISTINCT FROM fresh_rows.user_id AND awards.perk_id IS NOT DISTINCT FROM fresh_rows.perk_id AND awards.updated_at IS NOT DISTINCT FROM fresh_rows.updated_at AND CAST(awards._sdc_extra AS VARCHAR(65535)) IS NOT DISTINCT FROM CAST(fresh_rows._sdc_extra AS VARCHAR(65535)) AND awards._sdc_deleted_at IS NOT DISTINCT FROM fresh_rows._sdc_deleted_at)) AS changed_rows))) AS arrived LEFT OUTER JOIN award_balances ON award_balances.award_id = arrived.award_id;
DELETE FROM award_balances WHERE award_balances.award_id IN (SELECT _crm_merged.award_id 
FROM _crm_merged);
INSERT INTO award_balances (award_id, user_id, perk_id, points, as_of, as_of_source, last_action_id, earned_total, redeemed_total, refunded_total, action_count, first_action_at, last_action_at, updated_at) SELECT _crm_merged.award_id, _crm_merged.user_id, _crm_merged.perk_id, _crm_merged.points, _crm_merged.as_of, _crm_merged.as_of_source, _crm_merged.last_action_id, _crm_merged.earned_total, _crm_merged.redeemed_total, _crm_merged.refunded_total, _crm_merged.action_count, _crm_merged.first_action_at, _crm_merged.last_action_at, _crm_merged.updated_at 
FROM _crm_merged;
DELETE FROM _crm_merged;
UPDATE awards SET points=fresh_rows.points, user_id=fresh_rows.user_id, perk_id=fresh_rows.perk_id, updated_at=fresh_rows.updated_at, _sdc_extra=fresh_rows._sdc_extra, _sdc_extracted_at=fresh_rows._sdc_extracted_at, _sdc_batched_at=fresh_rows._sdc_batched_at, _sdc_table_version=fresh_rows._sdc_table_version, _sdc_deleted_at=fresh_rows._sdc_deleted_at FROM (SELECT _crm_staging_awards._id AS _id, _crm_staging_awards.points AS points, _crm_staging_awards.user_id AS user_id, _crm_staging_awards.perk_id AS perk_id, _crm_staging_awards.updated_at AS updated_at, _crm_staging_awards._sdc_extra AS _sdc_extra, _crm_staging_awards._sdc_extracted_at AS _sdc_extracted_at, _crm_staging_awards._sdc_batched_at AS _sdc_batched_at, _crm_staging_awards._sdc_table_version AS _sdc_table_version, _crm_staging_awards._sdc_deleted_at AS _sdc_deleted_at 
FROM _crm_staging_awards JOIN _crm_fresh ON _crm_fresh._seq = _crm_staging_awards._seq) AS fresh_rows WHERE awards._id = fresh_rows._id;
INSERT INTO awards (_id, points, user_id, perk_id, updated_at, _sdc_extra, _sdc_extracted_at, _sdc_batched_at, _sdc_table_version, _sdc_deleted_at) SELECT fresh_rows._id, fresh_rows.points, fresh_rows.user_id, fresh_rows.perk_id, fresh_rows.updated_at, fresh_rows._sdc_extra, fresh_rows._sdc_extracted_at, fresh_rows._sdc_batched_at, fresh_rows._sdc_table_version, fresh_rows._sdc_deleted_at 
FROM (SELECT _crm_staging_awards._id AS _id, _crm_staging_awards.points AS points, _crm_staging_awards.user_id AS user_id, _crm_staging_awards.perk_id AS perk_id, _crm_staging_awards.updated_at AS updated_at, _crm_staging_awards._sdc_extra AS _sdc_extra, _crm_staging_awards._sdc_extracted_at AS _sdc_extracted_at, _crm_staging_awards._sdc_batched_at AS _sdc_batched_at, _crm_staging_awards._sdc_table_version AS _sdc_table_version, _crm_staging_awards._sdc_deleted_at AS _sdc_deleted_at 
FROM _crm_staging_awards JOIN _crm_fresh ON _crm_fresh._seq = _crm_staging_awards._seq) AS fresh_rows LEFT OUTER JOIN awards ON awards._id = fresh_rows._id 
WHERE awards._id IS NULL;
SELECT count(*) AS count_1 
FROM _crm_staging_awards JOIN awards ON awards._id = _crm_staging_awards._id AND awards._id IS NOT DISTINCT FROM _crm_staging_awards._id AND awards.points IS NOT DISTINCT FROM _crm_staging_awards.points AND awards.user_id IS NOT DISTINCT FROM _crm_staging_awards.user_id AND awards.perk_id IS NOT DISTINCT FROM _crm_staging_awards.perk_id AND awards.updated_at IS NOT DISTINCT FROM _crm_staging_awards.updated_at AND CAST(awards._sdc_extra AS VARCHAR(65535)) IS NOT DISTINCT FROM CAST(_crm_staging_awards._sdc_extra AS VARCHAR(65535)) AND awards._sdc_deleted_at IS NOT DISTINCT FROM _crm_staging_awards._sdc_deleted_at;
UPDATE awards SET _sdc_table_version=seen._sdc_table_version, _sdc_deleted_at=NULL FROM (SELECT _crm_staging_awards._id AS _id, max(_crm_staging_awards._sdc_table_version) AS _sdc_table_version 
FROM _crm_staging_awards 
WHERE _crm_staging_awards._sdc_table_version IS NOT NULL GROUP BY _crm_staging_awards._id) AS seen WHERE awards._id = seen._id AND (awards._sdc_table_version IS NULL OR awards._sdc_table_version < seen._sdc_table_version);
UPDATE awards SET user_id=coalesce(awards.user_id, told.user_id), perk_id=coalesce(awards.perk_id, told.perk_id) FROM (SELECT _crm_staging_awards._id AS award_id, max(_crm_staging_awards.user_id) AS user_id, max(_crm_staging_awards.perk_id) AS perk_id 
FROM _crm_staging_awards 
WHERE _crm_staging_awards.points IS NOT NULL AND _crm_staging_awards._id IN (SELECT _crm_staging_awards._id 
FROM _crm_staging_awards) GROUP BY _crm_staging_awards._id) AS told WHERE awards._id = told.award_id AND (awards.user_id IS NULL AND told.user_id IS NOT NULL OR awards.perk_id IS NULL AND told.perk_id IS NOT NULL);
UPDATE award_balances SET user_id=coalesce(award_balances.user_id, told.user_id), perk_id=coalesce(award_balances.perk_id, told.perk_id) FROM (SELECT _crm_staging_awards._id AS award_id, max(_crm_staging_awards.user_id) AS user_id, max(_crm_staging_awards.perk_id) AS perk_id 
FROM _crm_staging_awards 
WHERE _crm_staging_awards.points IS NOT NULL AND _crm_staging_awards._id IN (SELECT _crm_staging_awards._id 
FROM _crm_staging_awards) GROUP BY _crm_staging_awards._id) AS told WHERE award_balances.award_id = told.award_id AND (award_balances.user_id IS NULL AND told.user_id IS NOT NULL OR award_balances.perk_id IS NULL AND told.perk_id IS NOT NULL);
DELETE FROM _crm_fresh;
DELETE FROM _crm_staging_awards;
DELETE FROM load_runs WHERE load_runs.run_id = %s;
INSERT INTO load_runs (run_id, stream, started_at, finished_at, exit_state, seconds, read, applied, duplicate, superseded, quarantined) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s);

-- a batch of another stream

CREATE TABLE perks (
	_id VARCHAR(1020) NOT NULL, 
	title VARCHAR(65535), 
	price DOUBLE PRECISION, 
	stock BIGINT, 
	"on" BOOLEAN, 
	since DATE, 
	rules VARCHAR(65535), 
	_sdc_extra VARCHAR(65535), 
	_sdc_extracted_at TIMESTAMP WITH TIME ZONE, 
	_sdc_batched_at TIMESTAMP WITH TIME ZONE, 
	_sdc_table_version BIGINT, 
	_sdc_deleted_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (_id)
);
CREATE TABLE _crm_staging_perks (
	_seq BIGINT NOT NULL, 
	_id VARCHAR(1020), 
	title VARCHAR(65535), 
	price DOUBLE PRECISION, 
	stock BIGINT, 
	"on" BOOLEAN, 
	since DATE, 
	rules VARCHAR(65535), 
	_sdc_extra VARCHAR(65535), 
	_sdc_extracted_at TIMESTAMP WITH TIME ZONE, 
	_sdc_batched_at TIMESTAMP WITH TIME ZONE, 
	_sdc_table_version BIGINT, 
	_sdc_deleted_at TIMESTAMP WITH TIME ZONE, 
	PRIMARY KEY (_seq)
);
DELETE FROM _crm_fresh;
DELETE FROM _crm_staging_perks;
INSERT INTO _crm_staging_perks (_seq, _id, title, price, stock, "on", since, rules, _sdc_extra, _sdc_extracted_at, _sdc_batched_at, _sdc_table_version, _sdc_deleted_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s);
INSERT INTO _crm_fresh (_seq) SELECT ranked._seq 
FROM (SELECT _crm_staging_perks._seq AS _seq, _crm_staging_perks._id AS _id, _crm_staging_perks.title AS title, _crm_staging_perks.price AS price, _crm_staging_perks.stock AS stock, _crm_staging_perks."on" AS "on", _crm_staging_perks.since AS since, _crm_staging_perks.rules AS rules, _crm_staging_perks._sdc_extra AS _sdc_extra, _crm_staging_perks._sdc_extracted_at AS _sdc_extracted_at, _crm_staging_perks._sdc_batched_at AS _sdc_batched_at, _crm_staging_perks._sdc_table_version AS _sdc_table_version, _crm_staging_perks._sdc_deleted_at AS _sdc_deleted_at, row_number() OVER (PARTITION BY _crm_staging_perks._id ORDER BY _crm_staging_perks._sdc_extracted_at DESC, _crm_staging_perks._seq DESC) AS _rank 
FROM _crm_staging_perks) AS ranked LEFT OUTER JOIN perks ON perks._id = ranked._id 
WHERE ranked._rank = %s AND (perks._id IS NULL OR (perks._sdc_extracted_at IS NULL OR ranked._sdc_extracted_at >= perks._sdc_extracted_at) AND NOT (perks._id IS NOT DISTINCT FROM ranked._id AND perks.title IS NOT DISTINCT FROM ranked.title AND perks.price IS NOT DISTINCT FROM ranked.price AND perks.stock IS NOT DISTINCT FROM ranked.stock AND perks."on" IS NOT DISTINCT FROM ranked."on" AND perks.since IS NOT DISTINCT FROM ranked.since AND CAST(perks.rules AS VARCHAR(65535)) IS NOT DISTINCT FROM CAST(ranked.rules AS VARCHAR(65535)) AND CAST(perks._sdc_extra AS VARCHAR(65535)) IS NOT DISTINCT FROM CAST(ranked._sdc_extra AS VARCHAR(65535)) AND perks._sdc_extracted_at IS NOT DISTINCT FROM ranked._sdc_extracted_at AND perks._sdc_table_version IS NOT DISTINCT FROM ranked._sdc_table_version AND perks._sdc_deleted_at IS NOT DISTINCT FROM ranked._sdc_deleted_at));
SELECT count(*) AS count_1 
FROM (SELECT fresh_rows._id AS _id, fresh_rows.title AS title, fresh_rows.price AS price, fresh_rows.stock AS stock, fresh_rows."on" AS "on", fresh_rows.since AS since, fresh_rows.rules AS rules, fresh_rows._sdc_extra AS _sdc_extra, fresh_rows._sdc_extracted_at AS _sdc_extracted_at, fresh_rows._sdc_batched_at AS _sdc_batched_at, fresh_rows._sdc_table_version AS _sdc_table_version, fresh_rows._sdc_deleted_at AS _sdc_deleted_at 
FROM (SELECT _crm_staging_perks._id AS _id, _crm_staging_perks.title AS title, _crm_staging_perks.price AS price, _crm_staging_perks.stock AS stock, _crm_staging_perks."on" AS "on", _crm_staging_perks.since AS since, _crm_staging_perks.rules AS rules, _crm_staging_perks._sdc_extra AS _sdc_extra, _crm_staging_perks._sdc_extracted_at AS _sdc_extracted_at, _crm_staging_perks._sdc_batched_at AS _sdc_batched_at, _crm_staging_perks._sdc_table_version AS _sdc_table_version, _crm_staging_perks._sdc_deleted_at AS _sdc_deleted_at 
FROM _crm_staging_perks JOIN _crm_fresh ON _crm_fresh._seq = _crm_staging_perks._seq) AS fresh_rows LEFT OUTER JOIN perks ON perks._id = fresh_rows._id 
WHERE perks._id IS NULL OR NOT (perks._id IS NOT DISTINCT FROM fresh_rows._id AND perks.title IS NOT DISTINCT FROM fresh_rows.title AND perks.price IS NOT DISTINCT FROM fresh_rows.price AND perks.stock IS NOT DISTINCT FROM fresh_rows.stock AND perks."on" IS NOT DISTINCT FROM fresh_rows."on" AND perks.since IS NOT DISTINCT FROM fresh_rows.since AND CAST(perks.rules AS VARCHAR(65535)) IS NOT DISTINCT FROM CAST(fresh_rows.rules AS VARCHAR(65535)) AND CAST(perks._sdc_extra AS VARCHAR(65535)) IS NOT DISTINCT FROM CAST(fresh_rows._sdc_extra AS VARCHAR(65535)) AND perks._sdc_deleted_at IS NOT DISTINCT FROM fresh_rows._sdc_deleted_at)) AS changed_rows;
UPDATE perks SET title=fresh_rows.title, price=fresh_rows.price, stock=fresh_rows.stock, "on"=fresh_rows."on", since=fresh_rows.since, rules=fresh_rows.rules, _sdc_extra=fresh_rows._sdc_extra, _sdc_extracted_at=fresh_rows._sdc_extracted_at, _sdc_batched_at=fresh_rows._sdc_batched_at, _sdc_table_version=fresh_rows._sdc_table_version, _sdc_deleted_at=fresh_rows._sdc_deleted_at FROM (SELECT _crm_staging_perks._id AS _id, _crm_staging_perks.title AS title, _crm_staging_perks.price AS price, _crm_staging_perks.stock AS stock, _crm_staging_perks."on" AS "on", _crm_staging_perks.since AS since, _crm_staging_perks.rules AS rules, _crm_staging_perks._sdc_extra AS _sdc_extra, _crm_staging_perks._sdc_extracted_at AS _sdc_extracted_at, _crm_staging_perks._sdc_batched_at AS _sdc_batched_at, _crm_staging_perks._sdc_table_version AS _sdc_table_version, _crm_staging_perks._sdc_deleted_at AS _sdc_deleted_at 
FROM _crm_staging_perks JOIN _crm_fresh ON _crm_fresh._seq = _crm_staging_perks._seq) AS fresh_rows WHERE perks._id = fresh_rows._id;
INSERT INTO perks (_id, title, price, stock, "on", since, rules, _sdc_extra, _sdc_extracted_at, _sdc_batched_at, _sdc_table_version, _sdc_deleted_at) SELECT fresh_rows._id, fresh_rows.title, fresh_rows.price, fresh_rows.stock, fresh_rows."on", fresh_rows.since, fresh_rows.rules, fresh_rows._sdc_extra, fresh_rows._sdc_extracted_at, fresh_rows._sdc_batched_at, fresh_rows._sdc_table_version, fresh_rows._sdc_deleted_at 
FROM (SELECT _crm_staging_perks._id AS _id, _crm_staging_perks.title AS title, _crm_staging_perks.price AS price, _crm_staging_perks.stock AS stock, _crm_staging_perks."on" AS "on", _crm_staging_perks.since AS since, _crm_staging_perks.rules AS rules, _crm_staging_perks._sdc_extra AS _sdc_extra, _crm_staging_perks._sdc_extracted_at AS _sdc_extracted_at, _crm_staging_perks._sdc_batched_at AS _sdc_batched_at, _crm_staging_perks._sdc_table_version AS _sdc_table_version, _crm_staging_perks._sdc_deleted_at AS _sdc_deleted_at 
FROM _crm_staging_perks JOIN _crm_fresh ON _crm_fresh._seq = _crm_staging_perks._seq) AS fresh_rows LEFT OUTER JOIN perks ON perks._id = fresh_rows._id 
WHERE perks._id IS NULL;
SELECT count(*) AS count_1 
FROM _crm_staging_perks JOIN perks ON perks._id = _crm_staging_perks._id AND perks._id IS NOT DISTINCT FROM _crm_staging_perks._id AND perks.title IS NOT DISTINCT FROM _crm_staging_perks.title AND perks.price IS NOT DISTINCT FROM _crm_staging_perks.price AND perks.stock IS NOT DISTINCT FROM _crm_staging_perks.stock AND perks."on" IS NOT DISTINCT FROM _crm_staging_perks."on" AND perks.since IS NOT DISTINCT FROM _crm_staging_perks.since AND CAST(perks.rules AS VARCHAR(65535)) IS NOT DISTINCT FROM CAST(_crm_staging_perks.rules AS VARCHAR(65535)) AND CAST(perks._sdc_extra AS VARCHAR(65535)) IS NOT DISTINCT FROM CAST(_crm_staging_perks._sdc_extra AS VARCHAR(65535)) AND perks._sdc_deleted_at IS NOT DISTINCT FROM _crm_staging_perks._sdc_deleted_at;
UPDATE perks SET _sdc_table_version=seen._sdc_table_version, _sdc_deleted_at=NULL FROM (SELECT _crm_staging_perks._id AS _id, max(_crm_staging_perks._sdc_table_version) AS _sdc_table_version 
FROM _crm_staging_perks 
WHERE _crm_staging_perks._sdc_table_version IS NOT NULL GROUP BY _crm_staging_perks._id) AS seen WHERE perks._id = seen._id AND (perks._sdc_table_version IS NULL OR perks._sdc_table_version < seen._sdc_table_version);
DELETE FROM _crm_fresh;
DELETE FROM _crm_staging_perks;
DELETE FROM load_runs WHERE load_runs.run_id = %s;
INSERT INTO load_runs (run_id, stream, started_at, finished_at, exit_state, seconds, read, applied, duplicate, superseded, quarantined) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s);

-- crm-balances rebuild

DELETE FROM award_balances;
INSERT INTO award_balances (award_id, user_id, perk_id, points, as_of, as_of_source, last_action_id, earned_total, redeemed_total, refunded_total, action_count, first_action_at, last_action_at, updated_at) SELECT halves.award_id, coalesce(CASE WHEN (halves.action_as_of IS NULL OR halves.award_as_of > halves.action_as_of OR halves.award_as_of = halves.action_as_of AND (halves.action_as_of_source = 'award' OR halves.award_as_of_source = 'action' AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id)) THEN halves.award_user_id ELSE halves.action_user_id END, halves.award_user_id, halves.action_user_id) AS user_id, coalesce(CASE WHEN (halves.action_as_of IS NULL OR halves.award_as_of > halves.action_as_of OR halves.award_as_of = halves.action_as_of AND (halves.action_as_of_source = 'award' OR halves.award_as_of_source = 'action' AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id)) THEN halves.award_perk_id ELSE halves.action_perk_id END, halves.award_perk_id, halves.action_perk_id) AS perk_id, CASE WHEN (halves.action_as_of IS NULL OR halves.award_as_of > halves.action_as_of OR halves.award_as_of = halves.action_as_of AND (halves.action_as_of_source = 'award' OR halves.award_as_of_source = 'action' AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id)) THEN halves.award_points ELSE halves.action_points END AS points, CASE WHEN (halves.action_as_of IS NULL OR halves.award_as_of > halves.action_as_of OR halves.award_as_of = halves.action_as_of AND (halves.action_as_of_source = 'award' OR halves.award_as_of_source = 'action' AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id)) THEN halves.award_as_of ELSE halves.action_as_of END AS as_of, CASE WHEN (halves.action_as_of IS NULL OR halves.award_as_of > halves.action_as_of OR halves.award_as_of = halves.action_as_of AND (halves.action_as_of_source = 'award' OR halves.award_as_of_source = 'action' AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id)) THEN halves.award_as_of_source ELSE halves.action_as_of_source END AS as_of_source, CASE WHEN (halves.action_last_action_at IS NULL OR CAST(NULL AS TIMESTAMP WITH TIME ZONE) > halves.action_last_action_at OR CAST(NULL AS TIMESTAMP WITH TIME ZONE) = halves.action_last_action_at AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id) THEN CAST(NULL AS VARCHAR(1020)) ELSE halves.action_last_action_id END AS last_action_id, (coalesce(CAST(NULL AS NUMERIC(19, 4)), 0) + coalesce(halves.action_earned_total, 0)) AS earned_total, (coalesce(CAST(NULL AS NUMERIC(19, 4)), 0) + coalesce(halves.action_redeemed_total, 0)) AS redeemed_total, (coalesce(CAST(NULL AS NUMERIC(19, 4)), 0) + coalesce(halves.action_refunded_total, 0)) AS refunded_total, coalesce(CAST(NULL AS BIGINT), 0) + coalesce(halves.action_action_count, 0) AS action_count, CASE WHEN (halves.action_first_action_at IS NULL OR CAST(NULL AS TIMESTAMP WITH TIME ZONE) < halves.action_first_action_at) THEN CAST(NULL AS TIMESTAMP WITH TIME ZONE) ELSE halves.action_first_action_at END AS first_action_at, CASE WHEN (halves.action_last_action_at IS NULL OR CAST(NULL AS TIMESTAMP WITH TIME ZONE) > halves.action_last_action_at) THEN CAST(NULL AS TIMESTAMP WITH TIME ZONE) ELSE halves.action_last_action_at END AS last_action_at, CASE WHEN (halves.action_updated_at IS NULL OR halves.award_updated_at > halves.action_updated_at) THEN halves.award_updated_at ELSE halves.action_updated_at END AS updated_at 
FROM (SELECT partials.award_id AS award_id, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.user_id END) AS award_user_id, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.perk_id END) AS award_perk_id, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.points END) AS award_points, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.as_of END) AS award_as_of, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.as_of_source END) AS award_as_of_source, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.updated_at END) AS award_updated_at, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.user_id END) AS action_user_id, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.perk_id END) AS action_perk_id, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.points END) AS action_points, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.as_of END) AS action_as_of, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.as_of_source END) AS action_as_of_source, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.last_action_id END) AS action_last_action_id, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.earned_total END) AS action_earned_total, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.redeemed_total END) AS action_redeemed_total, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.refunded_total END) AS action_refunded_total, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.action_count END) AS action_action_count, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.first_action_at END) AS action_first_action_at, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.last_action_at END) AS action_last_action_at, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.updated_at END) AS action_updated_at 
FROM (SELECT ranked.award_id AS award_id, coalesce(max(CASE WHEN (ranked.rank = %s) THEN ranked.user_id END), max(ranked.user_id)) AS user_id, coalesce(max(CASE WHEN (ranked.rank = %s) THEN ranked.perk_id END), max(ranked.perk_id)) AS perk_id, max(CASE WHEN (ranked.rank = %s) THEN ranked.points_available END) AS points, max(ranked.occurred_at) AS as_of, CAST('action' AS VARCHAR(1020)) AS as_of_source, max(CASE WHEN (ranked.rank = %s) THEN ranked.action_id END) AS last_action_id, CAST(sum(CASE WHEN (ranked.effect = 'earned') THEN ranked.points_added ELSE CAST(0 AS NUMERIC(19, 4)) END) AS NUMERIC(19, 4)) AS earned_total, CAST(sum(CASE WHEN (ranked.effect = 'redeemed') THEN ranked.points_redeemed ELSE CAST(0 AS NUMERIC(19, 4)) END) AS NUMERIC(19, 4)) AS redeemed_total, CAST(sum(CASE WHEN (ranked.effect = 'refunded') THEN ranked.points_refunded ELSE CAST(0 AS NUMERIC(19, 4)) END) AS NUMERIC(19, 4)) AS refunded_total, CAST(count(*) AS BIGINT) AS action_count, min(ranked.occurred_at) AS first_action_at, max(ranked.occurred_at) AS last_action_at, max(ranked.loaded_at) AS updated_at 
FROM (SELECT actions.award_id AS award_id, actions.user_id AS user_id, actions.perk_id AS perk_id, actions.action_id AS action_id, actions.occurred_at AS occurred_at, actions.effect AS effect, actions.points_available AS points_available, actions.loaded_at AS loaded_at, actions.points_added AS points_added, actions.points_redeemed AS points_redeemed, actions.points_refunded AS points_refunded, row_number() OVER (PARTITION BY actions.award_id ORDER BY actions.occurred_at DESC, actions.action_id DESC) AS rank 
FROM actions 
WHERE actions.effect IS NOT NULL) AS ranked GROUP BY ranked.award_id UNION ALL SELECT awards._id AS award_id, awards.user_id AS user_id, awards.perk_id AS perk_id, awards.points AS points, coalesce(awards.updated_at, awards._sdc_extracted_at) AS as_of, CAST('award' AS VARCHAR(1020)) AS as_of_source, CAST(NULL AS VARCHAR(1020)) AS last_action_id, CAST(0 AS NUMERIC(19, 4)) AS earned_total, CAST(0 AS NUMERIC(19, 4)) AS redeemed_total, CAST(0 AS NUMERIC(19, 4)) AS refunded_total, CAST(0 AS BIGINT) AS action_count, CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS first_action_at, CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS last_action_at, awards._sdc_batched_at AS updated_at 
FROM awards 
WHERE awards.points IS NOT NULL) AS partials GROUP BY partials.award_id) AS halves;
SELECT count(*) AS count_1 
FROM award_balances;

-- crm-balances verify

SELECT counted.award_id, counted.points, counted.expected_points, counted.drifted, counted.gaps, counted.gap_at, counted.place_0, counted.place_1, counted.all_drifted, counted.all_gaps 
FROM (SELECT found.award_id AS award_id, found.points AS points, found.expected_points AS expected_points, found.drifted AS drifted, found.gaps AS gaps, found.gap_at AS gap_at, row_number() OVER (PARTITION BY found.drifted ORDER BY found.award_id) AS place_0, row_number() OVER (PARTITION BY CASE WHEN (found.gaps > %s) THEN %s ELSE %s END ORDER BY found.award_id) AS place_1, sum(found.drifted) OVER () AS all_drifted, sum(found.gaps) OVER () AS all_gaps 
FROM (SELECT words.award_id AS award_id, max(CASE WHEN (words.first_side = %s) THEN words.points END) AS points, max(CASE WHEN (words.last_side = %s) THEN words.points END) AS expected_points, %s - min(words.agree) AS drifted, max(words.gaps) AS gaps, max(words.gap_at) AS gap_at 
FROM (SELECT sides.award_id AS award_id, sides.points AS points, min(sides.side) AS first_side, max(sides.side) AS last_side, CASE WHEN (count(*) = %s AND min(sides.side) != max(sides.side)) THEN %s ELSE %s END AS agree, max(sides.gaps) AS gaps, max(sides.gap_at) AS gap_at 
FROM (SELECT award_balances.award_id AS award_id, award_balances.user_id AS user_id, award_balances.perk_id AS perk_id, award_balances.points AS points, award_balances.as_of AS as_of, award_balances.as_of_source AS as_of_source, award_balances.last_action_id AS last_action_id, award_balances.earned_total AS earned_total, award_balances.redeemed_total AS redeemed_total, award_balances.refunded_total AS refunded_total, award_balances.action_count AS action_count, award_balances.first_action_at AS first_action_at, award_balances.last_action_at AS last_action_at, CAST(NULL AS BIGINT) AS gaps, CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS gap_at, 0 AS side 
FROM award_balances UNION ALL SELECT expected.award_id AS award_id, expected.user_id AS user_id, expected.perk_id AS perk_id, expected.points AS points, expected.as_of AS as_of, expected.as_of_source AS as_of_source, expected.last_action_id AS last_action_id, expected.earned_total AS earned_total, expected.redeemed_total AS redeemed_total, expected.refunded_total AS refunded_total, expected.action_count AS action_count, expected.first_action_at AS first_action_at, expected.last_action_at AS last_action_at, expected.gaps AS gaps, expected.gap_at AS gap_at, 1 AS side 
FROM (SELECT halves.award_id AS award_id, coalesce(CASE WHEN (halves.action_as_of IS NULL OR halves.award_as_of > halves.action_as_of OR halves.award_as_of = halves.action_as_of AND (halves.action_as_of_source = 'award' OR halves.award_as_of_source = 'action' AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id)) THEN halves.award_user_id ELSE halves.action_user_id END, halves.award_user_id, halves.action_user_id) AS user_id, coalesce(CASE WHEN (halves.action_as_of IS NULL OR halves.award_as_of > halves.action_as_of OR halves.award_as_of = halves.action_as_of AND (halves.action_as_of_source = 'award' OR halves.award_as_of_source = 'action' AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id)) THEN halves.award_perk_id ELSE halves.action_perk_id END, halves.award_perk_id, halves.action_perk_id) AS perk_id, CASE WHEN (halves.action_as_of IS NULL OR halves.award_as_of > halves.action_as_of OR halves.award_as_of = halves.action_as_of AND (halves.action_as_of_source = 'award' OR halves.award_as_of_source = 'action' AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id)) THEN halves.award_points ELSE halves.action_points END AS points, CASE WHEN (halves.action_as_of IS NULL OR halves.award_as_of > halves.action_as_of OR halves.award_as_of = halves.action_as_of AND (halves.action_as_of_source = 'award' OR halves.award_as_of_source = 'action' AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id)) THEN halves.award_as_of ELSE halves.action_as_of END AS as_of, CASE WHEN (halves.action_as_of IS NULL OR halves.award_as_of > halves.action_as_of OR halves.award_as_of = halves.action_as_of AND (halves.action_as_of_source = 'award' OR halves.award_as_of_source = 'action' AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id)) THEN halves.award_as_of_source ELSE halves.action_as_of_source END AS as_of_source, CASE WHEN (halves.action_last_action_at IS NULL OR CAST(NULL AS TIMESTAMP WITH TIME ZONE) > halves.action_last_action_at OR CAST(NULL AS TIMESTAMP WITH TIME ZONE) = halves.action_last_action_at AND CAST(NULL AS VARCHAR(1020)) > halves.action_last_action_id) THEN CAST(NULL AS VARCHAR(1020)) ELSE halves.action_last_action_id END AS last_action_id, (coalesce(CAST(NULL AS NUMERIC(19, 4)), 0) + coalesce(halves.action_earned_total, 0)) AS earned_total, (coalesce(CAST(NULL AS NUMERIC(19, 4)), 0) + coalesce(halves.action_redeemed_total, 0)) AS redeemed_total, (coalesce(CAST(NULL AS NUMERIC(19, 4)), 0) + coalesce(halves.action_refunded_total, 0)) AS refunded_total, coalesce(CAST(NULL AS BIGINT), 0) + coalesce(halves.action_action_count, 0) AS action_count, CASE WHEN (halves.action_first_action_at IS NULL OR CAST(NULL AS TIMESTAMP WITH TIME ZONE) < halves.action_first_action_at) THEN CAST(NULL AS TIMESTAMP WITH TIME ZONE) ELSE halves.action_first_action_at END AS first_action_at, CASE WHEN (halves.action_last_action_at IS NULL OR CAST(NULL AS TIMESTAMP WITH TIME ZONE) > halves.action_last_action_at) THEN CAST(NULL AS TIMESTAMP WITH TIME ZONE) ELSE halves.action_last_action_at END AS last_action_at, CASE WHEN (halves.action_updated_at IS NULL OR halves.award_updated_at > halves.action_updated_at) THEN halves.award_updated_at ELSE halves.action_updated_at END AS updated_at, halves.action_gaps AS gaps, halves.action_gap_at AS gap_at 
FROM (SELECT partials.award_id AS award_id, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.user_id END) AS award_user_id, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.perk_id END) AS award_perk_id, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.points END) AS award_points, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.as_of END) AS award_as_of, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.as_of_source END) AS award_as_of_source, max(CASE WHEN (partials.as_of_source = 'award') THEN partials.updated_at END) AS award_updated_at, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.user_id END) AS action_user_id, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.perk_id END) AS action_perk_id, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.points END) AS action_points, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.as_of END) AS action_as_of, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.as_of_source END) AS action_as_of_source, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.last_action_id END) AS action_last_action_id, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.earned_total END) AS action_earned_total, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.redeemed_total END) AS action_redeemed_total, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.refunded_total END) AS action_refunded_total, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.action_count END) AS action_action_count, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.first_action_at END) AS action_first_action_at, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.last_action_at END) AS action_last_action_at, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.updated_at END) AS action_updated_at, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.gaps END) AS action_gaps, max(CASE WHEN (partials.as_of_source = 'action') THEN partials.gap_at END) AS action_gap_at 
FROM (SELECT ranked.award_id AS award_id, coalesce(max(CASE WHEN (ranked.rank = %s) THEN ranked.user_id END), max(ranked.user_id)) AS user_id, coalesce(max(CASE WHEN (ranked.rank = %s) THEN ranked.perk_id END), max(ranked.perk_id)) AS perk_id, max(CASE WHEN (ranked.rank = %s) THEN ranked.points_available END) AS points, max(ranked.occurred_at) AS as_of, CAST('action' AS VARCHAR(1020)) AS as_of_source, max(CASE WHEN (ranked.rank = %s) THEN ranked.action_id END) AS last_action_id, CAST(sum(CASE WHEN (ranked.effect = 'earned') THEN ranked.points_added ELSE CAST(0 AS NUMERIC(19, 4)) END) AS NUMERIC(19, 4)) AS earned_total, CAST(sum(CASE WHEN (ranked.effect = 'redeemed') THEN ranked.points_redeemed ELSE CAST(0 AS NUMERIC(19, 4)) END) AS NUMERIC(19, 4)) AS redeemed_total, CAST(sum(CASE WHEN (ranked.effect = 'refunded') THEN ranked.points_refunded ELSE CAST(0 AS NUMERIC(19, 4)) END) AS NUMERIC(19, 4)) AS refunded_total, CAST(count(*) AS BIGINT) AS action_count, min(ranked.occurred_at) AS first_action_at, max(ranked.occurred_at) AS last_action_at, max(ranked.loaded_at) AS updated_at, CAST(count(CASE WHEN ((ranked.points_available - ranked.points_before) != CASE WHEN (ranked.effect = 'earned') THEN ranked.points_added WHEN (ranked.effect = 'redeemed') THEN -ranked.points_redeemed ELSE ranked.points_refunded END) THEN ranked.action_id END) AS BIGINT) AS gaps, max(CASE WHEN ((ranked.points_available - ranked.points_before) != CASE WHEN (ranked.effect = 'earned') THEN ranked.points_added WHEN (ranked.effect = 'redeemed') THEN -ranked.points_redeemed ELSE ranked.points_refunded END) THEN ranked.occurred_at END) AS gap_at 
FROM (SELECT actions.award_id AS award_id, actions.user_id AS user_id, actions.perk_id AS perk_id, actions.action_id AS action_id, actions.occurred_at AS occurred_at, actions.effect AS effect, actions.points_available AS points_available, actions.loaded_at AS loaded_at, actions.points_added AS points_added, actions.points_redeemed AS points_redeemed, actions.points_refunded AS points_refunded, row_number() OVER (PARTITION BY actions.award_id ORDER BY actions.occurred_at DESC, actions.action_id DESC) AS rank, lead(actions.points_available) OVER (PARTITION BY actions.award_id ORDER BY actions.occurred_at DESC, actions.action_id DESC) AS points_before 
FROM actions 
WHERE actions.effect IS NOT NULL) AS ranked GROUP BY ranked.award_id UNION ALL SELECT awards._id AS award_id, awards.user_id AS user_id, awards.perk_id AS perk_id, awards.points AS points, coalesce(awards.updated_at, awards._sdc_extracted_at) AS as_of, CAST('award' AS VARCHAR(1020)) AS as_of_source, CAST(NULL AS VARCHAR(1020)) AS last_action_id, CAST(0 AS NUMERIC(19, 4)) AS earned_total, CAST(0 AS NUMERIC(19, 4)) AS redeemed_total, CAST(0 AS NUMERIC(19, 4)) AS refunded_total, CAST(0 AS BIGINT) AS action_count, CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS first_action_at, CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS last_action_at, awards._sdc_batched_at AS updated_at, CAST(NULL AS BIGINT) AS gaps, CAST(NULL AS TIMESTAMP WITH TIME ZONE) AS gap_at 
FROM awards 
WHERE awards.points IS NOT NULL) AS partials GROUP BY partials.award_id) AS halves) AS expected) AS sides GROUP BY sides.award_id, sides.user_id, sides.perk_id, sides.points, sides.as_of, sides.as_of_source, sides.last_action_id, sides.earned_total, sides.redeemed_total, sides.refunded_total, sides.action_count, sides.first_action_at, sides.last_action_at) AS words GROUP BY words.award_id 
HAVING min(words.agree) = %s OR max(words.gaps) > %s) AS found) AS counted 
WHERE counted.drifted = %s AND counted.place_0 <= 20 OR counted.gaps > %s AND counted.place_1 <= 20 ORDER BY counted.award_id;
SELECT awards._id AS award_id, award_balances.points, awards.points AS expected_points 
FROM awards LEFT OUTER JOIN award_balances ON award_balances.award_id = awards._id 
WHERE awards.points IS NOT NULL AND (award_balances.award_id IS NULL OR coalesce(awards.updated_at, awards._sdc_extracted_at) > award_balances.as_of OR award_balances.as_of_source = 'award' AND award_balances.points != awards.points) ORDER BY awards._id;
