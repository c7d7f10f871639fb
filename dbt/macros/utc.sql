{# Convert a time column of target-crm to a timestamp without time zone, in UTC. Only PostgreSQL stores a time zone. #}
{% macro utc(column) %}{{ return(adapter.dispatch('utc', 'pepper_crm')(column)) }}{% endmacro %}

{% macro default__utc(column) %}{{ column }}{% endmacro %}

{% macro postgres__utc(column) %}({{ column }} at time zone 'UTC'){% endmacro %}
