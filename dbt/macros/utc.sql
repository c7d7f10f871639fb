{# A time of target-crm's as a timestamp without a zone, in UTC: PostgreSQL has it with a zone, others without. #}
{% macro utc(column) %}{{ return(adapter.dispatch('utc', 'pepper_crm')(column)) }}{% endmacro %}

{% macro default__utc(column) %}{{ column }}{% endmacro %}

{% macro postgres__utc(column) %}({{ column }} at time zone 'UTC'){% endmacro %}
