-- Once per server, by someone who may create roles: psql --file deploy/roles.sql
-- Each role gets its password by ALTER ROLE … PASSWORD.
\set ON_ERROR_STOP on

-- Owns the tables, and creates and changes them. It is used at upgrades alone.
CREATE ROLE crm_migration LOGIN;

-- Reads and writes rows. It can neither create nor change nor drop a table.
CREATE ROLE crm_loader LOGIN;

-- Sees what deploy/readers.sql names.
CREATE ROLE crm_reader LOGIN;

-- Runs `crm-balances status` and `verify`. It sees what the reader sees, and the counts of the runs.
CREATE ROLE crm_monitor LOGIN;
GRANT crm_reader TO crm_monitor;

-- Runs the dbt package: deploy/dbt.sql. Delete this line if you do not use it.
CREATE ROLE crm_dbt LOGIN;
