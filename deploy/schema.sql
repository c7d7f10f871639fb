-- Create the schema of a merchant. Run this once per merchant in the warehouse's database. Your user must have the right to
-- create schemas, and must be a member of crm_migration: psql --set schema=loyalty --file deploy/schema.sql
\set ON_ERROR_STOP on

CREATE SCHEMA :"schema" AUTHORIZATION crm_migration;
GRANT USAGE ON SCHEMA :"schema" TO crm_loader, crm_reader;

-- Let the loader write to all tables that the migration role will create.
ALTER DEFAULT PRIVILEGES FOR ROLE crm_migration IN SCHEMA :"schema"
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLES TO crm_loader;
