-- Rights for crm_reader and crm_monitor. Run this once per merchant as the migration role, after the tables have been
-- created:
-- psql --username crm_migration --set schema=loyalty --file deploy/readers.sql
\set ON_ERROR_STOP on
SET search_path TO :"schema";

-- The reader must not see `users`, the quarantine or the `payload` of actions, because they contain personal data.
GRANT SELECT ON award_balances, user_balances, award_balance_drift, awards, perks, _crm_coverage TO crm_reader;
GRANT SELECT (action_id, type, tenant_id, user_id, award_id, perk_id, location_id, occurred_at, effect, points_available,
    points_added, points_redeemed, points_refunded, source, environment, loaded_at) ON actions TO crm_reader;

-- Additional tables that `crm-balances status` and `verify` read.
GRANT SELECT ON load_runs, _crm_version, _crm_streams TO crm_monitor;
GRANT SELECT (stream) ON rejected_records TO crm_monitor;
-- If you load `users`, also run the grant in the next line. `status` can then show how many users there are, and when they
-- were last loaded.
-- GRANT SELECT (_sdc_extracted_at, _sdc_batched_at, _sdc_deleted_at) ON users TO crm_monitor;
