-- Once, by someone who may create roles, in the warehouse's database. Each role gets its password by ALTER ROLE … PASSWORD.
CREATE ROLE crm_migration LOGIN;
CREATE ROLE crm_loader LOGIN;
CREATE ROLE crm_reader LOGIN;
CREATE ROLE crm_monitor LOGIN;

-- The migration role owns the tables, and creates and changes them. It is used at upgrades alone.
CREATE SCHEMA loyalty AUTHORIZATION crm_migration;

-- The loader reads and writes rows. It can neither create nor change nor drop a table.
GRANT USAGE ON SCHEMA loyalty TO crm_loader;
ALTER DEFAULT PRIVILEGES FOR ROLE crm_migration IN SCHEMA loyalty
    GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON TABLES TO crm_loader;

-- The reader sees what deploy/readers.sql names.
GRANT USAGE ON SCHEMA loyalty TO crm_reader;

-- The monitor runs `crm-balances status` and `verify`. It sees what the reader sees, and the counts of the runs.
GRANT crm_reader TO crm_monitor;
