-- Rights for the dbt package. Run this once per merchant, after the first run of the target has created the tables. Your
-- user must have the right to create schemas, and must be a member of crm_migration and crm_dbt:
-- psql --set schema=loyalty --file deploy/dbt.sql
\set ON_ERROR_STOP on
SET search_path TO :"schema";

-- dbt creates its own tables and views in another schema, such as loyalty_models. Set this schema as `schema` in
-- dbt's profile.
\set models :schema _models
CREATE SCHEMA IF NOT EXISTS :"models" AUTHORIZATION crm_dbt;

-- The tables that the package reads. `pepper_dim_location` reads titles from the payloads of actions, so dbt can also read
-- the personal data in these payloads.
GRANT USAGE ON SCHEMA :"schema" TO crm_dbt;
GRANT SELECT ON actions, award_balances, awards, perks, load_runs, _crm_coverage TO crm_dbt;
GRANT SELECT (rejected_id, stream, reason, rejected_at) ON rejected_records TO crm_dbt;
