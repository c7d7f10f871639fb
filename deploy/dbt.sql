-- For the dbt package, once the tables exist: by someone who may create roles and is a member of crm_migration.
CREATE ROLE crm_dbt LOGIN;

-- dbt's own tables and views: the `schema` of its profile.
CREATE SCHEMA loyalty_models AUTHORIZATION crm_dbt;

-- What the package reads. `pepper_dim_location` takes the titles from the payloads of actions, which hold personal data.
GRANT USAGE ON SCHEMA loyalty TO crm_dbt;
GRANT SELECT ON loyalty.actions, loyalty.award_balances, loyalty.awards, loyalty.perks, loyalty.load_runs,
    loyalty._crm_coverage TO crm_dbt;
GRANT SELECT (rejected_id, stream, reason, rejected_at) ON loyalty.rejected_records TO crm_dbt;
