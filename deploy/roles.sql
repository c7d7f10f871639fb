-- Create the roles. Run this once per server, as a user who may create roles: psql --file deploy/roles.sql
-- Then set each role's password with ALTER ROLE … PASSWORD.
\set ON_ERROR_STOP on

-- Owns the tables, and creates and changes them. Use this role only to create and upgrade tables.
CREATE ROLE crm_migration LOGIN;

-- Reads and writes rows. It cannot create, change or drop tables.
CREATE ROLE crm_loader LOGIN;

-- Reads the tables and columns that deploy/readers.sql grants.
CREATE ROLE crm_reader LOGIN;

-- Runs `crm-balances status` and `verify`. It has the rights of the reader, and also reads the counts of the runs.
CREATE ROLE crm_monitor LOGIN;
GRANT crm_reader TO crm_monitor;

-- Runs the dbt package. deploy/dbt.sql grants its rights. Delete the next line if you do not use the package.
CREATE ROLE crm_dbt LOGIN;
