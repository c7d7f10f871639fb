-- By the migration role, once the tables are there. Not for the reader: users, the quarantine, and whole actions (`payload`),
-- which hold personal data.
GRANT SELECT ON loyalty.award_balances, loyalty.user_balances, loyalty.award_balance_drift, loyalty.awards, loyalty.perks,
    loyalty._crm_coverage TO crm_reader;
GRANT SELECT (action_id, type, tenant_id, user_id, award_id, perk_id, location_id, occurred_at, effect, points_available,
    points_added, points_redeemed, points_refunded, source, environment, loaded_at) ON loyalty.actions TO crm_reader;

-- What `crm-balances status` and `verify` need besides.
GRANT SELECT ON loyalty.load_runs, loyalty._crm_version, loyalty._crm_streams TO crm_monitor;
GRANT SELECT (stream) ON loyalty.rejected_records TO crm_monitor;
