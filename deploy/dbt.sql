-- For the dbt package, once per merchant, when the tables exist, by someone who may create schemas and is a member of
-- crm_migration and crm_dbt: psql --set schema=loyalty --file deploy/dbt.sql
\set ON_ERROR_STOP on
SET search_path TO :"schema";

-- dbt's own tables and views are in another schema, such as loyalty_models: the `schema` of its profile.
\set models :schema _models
CREATE SCHEMA :"models" AUTHORIZATION crm_dbt;

-- What the package reads. `pepper_dim_location` takes the titles from the payloads of actions, which hold personal data.
GRANT USAGE ON SCHEMA :"schema" TO crm_dbt;
GRANT SELECT ON actions, award_balances, awards, perks, load_runs, _crm_coverage TO crm_dbt;
GRANT SELECT (rejected_id, stream, reason, rejected_at) ON rejected_records TO crm_dbt;
