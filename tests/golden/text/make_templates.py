#!/usr/bin/env python3
"""Makes templates.json: snippets and chat templates with what jinja2 renders from them.

Needs `pip install jinja2`. The environment is the one transformers builds for chat templates. The
chat templates are our own text for well-known prompt formats. Run once; the result is in git.
"""
import datetime
import json
import os

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = os.path.dirname(os.path.abspath(__file__))
NOW = datetime.datetime(2024, 7, 26, 13, 5, 9)


class Generation(Extension):
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = lambda format: NOW.strftime(format)
    return env


VALUES = {
    "s": "Hello, World", "u": "Straße 你好 ñ", "e": "", "n": 3, "neg": -7, "f": 2.5, "t": True,
    "no": False, "nil": None, "l": [3, 1, 2], "d": {"b": 1, "a": "x", "c": None},
    "nested": {"list": [{"k": "v1", "n": 1}, {"k": "v2", "n": 2}, {"n": 3}], "text": "q\"'\\\n<é>"},
    "words": ["banana", "Apple", "cherry"], "ws": "  padded \n", "lines": "a\nb\n\nc\n",
    "m": {"role": "user", "content": "hi", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
}

SNIPPETS = r"""
{{ s }}|{{ u }}|{{ e }}|{{ missing }}|{{ nil }}|{{ t }}|{{ no }}|{{ f }}|{{ neg }}
{{ l }} {{ d }} {{ nested }} {{ (1, 2) }} {{ (1,) }} {{ () }} {{ [] }} {{ {} }}
{{ 1 + 2 * 3 - 4 / 2 }} {{ 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ 7.5 // 2 }} {{ -7.5 % 2 }}
{{ 1 / 3 }} {{ 1e20 }} {{ 1.0 }} {{ 1e-7 }} {{ 123456789.123 }} {{ 1e16 }} {{ 0.1 + 0.2 }} {{ 100000.0 * 10 }}
{{ 'a' + 'b' }} {{ 'a' ~ 1 ~ none ~ [1] }} {{ 'ab' * 3 }} {{ [1] + [2] }} {{ [0] * 3 }}
{{ 1 < 2 < 3 }} {{ 1 < 2 > 3 }} {{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' != 'b' }} {{ [1, 2] == [1, 2] }} {{ none == false }}
{{ 'a' in 'abc' }} {{ 4 in l }} {{ 3 in l }} {{ 'b' in d }} {{ 'z' not in d }} {{ not 1 }} {{ not '' }}
{{ 1 and 2 }} {{ 0 and 2 }} {{ '' or 'x' }} {{ 1 or 2 }} {{ none or '' or 3 }}
{{ 'yes' if t else 'no' }} {{ 'yes' if no else 'no' }} [{{ 'yes' if no }}] {{ 1 if no else 2 if no else 3 }}
{{ s[0] }} {{ s[-1] }} {{ u[3] }} {{ u[4:] }} {{ s[1:4] }} {{ s[::-1] }} {{ s[:-2] }} {{ s[10:2:-3] }} {{ s[100:] }}|
{{ l[0] }} {{ l[-1] }} {{ l[1:] }} {{ l[::-1] }} {{ l[9] }} {{ (1, 2, 3)[1:] }} {{ l[:0] }}
{{ d.a }} {{ d['b'] }} {{ d.zzz }} {{ d['zzz'] }} {{ nested.list[0].k }} {{ nested['list'][1]['n'] }}
{{ d.items() | list }} {{ d.keys() | list }} {{ d.values() | list }} {{ d.get('a') }} {{ d.get('q') }} {{ d.get('q', 5) }}
{{ s.upper() }} {{ s.lower() }} {{ s.title() }} {{ 'hello world'.capitalize() }} {{ u.upper() }} {{ "they're bill's".title() }}
{{ ws.strip() }}|{{ ws.lstrip() }}|{{ ws.rstrip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'abcba'.lstrip('ab') }}|{{ '--a-'.rstrip('-') }}
{{ 'a,b,,c'.split(',') }} {{ '  a b  c '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ ' a b  c '.split(none, 1) }} {{ ''.split() }} {{ ''.split(',') }}
{{ 'a,b,c'.rsplit(',', 1) }} {{ ' a b c '.rsplit(none, 1) }} {{ 'a b c'.rsplit() }} {{ lines.splitlines() }} {{ lines.splitlines(true) }}
{{ s.startswith('He') }} {{ s.endswith('ld') }} {{ s.startswith(('x', 'H')) }} {{ s.find('o') }} {{ s.rfind('o') }} {{ s.find('zz') }} {{ u.find('好') }}
{{ s.replace('l', 'L') }} {{ s.replace('l', 'L', 1) }} {{ 'abc'.replace('', '-') }} {{ s.count('l') }} {{ ','.join(['a', 'b']) }}
{{ '12'.isdigit() }} {{ 'a1'.isalpha() }} {{ 'a1'.isalnum() }} {{ ' '.isspace() }} {{ 'AB'.isupper() }} {{ 'ab'.islower() }} {{ ''.isdigit() }}
{{ 'prefix-x'.removeprefix('prefix-') }} {{ 'x.py'.removesuffix('.py') }} {{ '42'.zfill(5) }} {{ '-42'.zfill(5) }}
{{ ws | trim }}|{{ 'xax' | trim('x') }}|{{ s | length }} {{ u | length }} {{ l | count }} {{ d | length }} {{ missing | length }}
{{ s | upper }} {{ s | lower }} {{ 'foo bar-baz (qux)' | title }} {{ 'fOO' | capitalize }} {{ 5 | string + 'x' }}
{{ l | join(', ') }} {{ l | join }} {{ nested.list | join('-', attribute='n') }} {{ 'abc' | join('.') }}
{{ missing | default('d') }} {{ e | default('d') }} {{ e | default('d', true) }} {{ nil | d('x') }} {{ missing | default }}|
{{ l | first }} {{ l | last }} {{ [] | first }}|{{ s | first }} {{ s | last }}
{{ l | sort }} {{ l | sort(reverse=true) }} {{ words | sort }} {{ words | sort(case_sensitive=true) }} {{ nested.list | sort(attribute='n', reverse=true) | map(attribute='n') | list }}
{{ nested.list | map(attribute='k') | list }} {{ nested.list | map(attribute='k', default='-') | list }} {{ words | map('upper') | list }} {{ l | map('string') | join('+') }}
{{ nested.list | selectattr('k') | list | length }} {{ nested.list | selectattr('k', 'defined') | map(attribute='n') | list }} {{ nested.list | rejectattr('n', 'gt', 1) | list }} {{ nested.list | selectattr('n', 'equalto', 2) | list }}
{{ l | select('odd') | list }} {{ l | reject('odd') | list }} {{ [0, 1, '', 'a'] | select | list }} {{ ['a', 1] | select('string') | list }}
{{ 'a-b' | replace('-', '+') }} {{ 'aaa' | replace('a', 'b', 2) }} {{ '3' | int }} {{ 'x' | int }} {{ 'x' | int(9) }} {{ '2.7' | int }} {{ 2.7 | int }} {{ 'ff' | int(0, 16) }}
{{ '3.5' | float }} {{ 'x' | float }} {{ 3 | float }} {{ -3 | abs }} {{ 2.567 | round(1) }} {{ 2.5 | round }} {{ 2.1 | round(0, 'ceil') }} {{ 2.9 | round(method='floor') }} {{ 42 | round }}
{{ d | items | list }} {{ d | list }} {{ 'abc' | list }} {{ d | dictsort }} {{ 'abc' | reverse }} {{ l | reverse | list }}
{{ [1, 2, 1, 'a', 'A'] | unique | list }} {{ l | sum }} {{ l | min }} {{ l | max }} {{ nested.list | sum(attribute='n') }} {{ words | min }}
{{ '<a href="x">\'&' | e }} {{ '<b>' | safe }} {{ 'a b  c' | wordcount }}
{{ lines | indent }}|{{ lines | indent(2, true) }}|{{ lines | indent(width=1, first=false, blank=true) }}|{{ 'a\nb' | indent('>>') }}
{{ nested | tojson }} {{ d | tojson }} {{ u | tojson }} {{ nil | tojson }} {{ f | tojson }} {{ (1, 2) | tojson }} {{ {} | tojson }} {{ [] | tojson }}
{{ nested | tojson(indent=2) }}
{{ {'b': 1, 'a': [1, {}]} | tojson(sort_keys=true) }} {{ [[], [1]] | tojson(indent=4) }} {{ '\u2028\t\x01' | tojson }} {{ {1: 2, none: 3} | tojson }}
{{ missing is defined }} {{ s is defined }} {{ missing is undefined }} {{ nil is none }} {{ nil is not none }} {{ s is string }} {{ n is string }}
{{ d is mapping }} {{ l is mapping }} {{ l is iterable }} {{ s is iterable }} {{ n is iterable }} {{ l is sequence }} {{ d is sequence }} {{ n is number }} {{ f is float }} {{ n is integer }} {{ t is boolean }} {{ t is integer }}
{{ t is true }} {{ no is false }} {{ 1 is true }} {{ n is odd }} {{ n is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ n is eq 3 }} {{ n is ne(3) }} {{ n is lt 4 }} {{ n is ge 4 }} {{ 3 is in l }} {{ 'ab' is lower }} {{ 'AB' is upper }} {{ range is callable }}
{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.first }}{{ loop.last }}{{ loop.revindex }}{{ loop.length }}:{{ x }};{% endfor %}
{% for x in [] %}a{% else %}empty{% endfor %} {% for x in missing %}a{% else %}none{% endfor %}
{% for k, v in d.items() %}{{ k }}={{ v }},{% endfor %} {% for k in d %}{{ k }}{% endfor %} {% for (a, b) in [(1, 2), [3, 4]] %}{{ a + b }} {% endfor %}
{% for x in l if x > 1 %}{{ loop.index }}:{{ x }} {% endfor %}{{ x }}
{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }} {% endfor %}
{% for x in l %}{{ loop.cycle('a', 'b') }}{% if loop.changed(x > 1) %}!{% endif %}{% endfor %}
{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}
{% for x in 'añ' %}[{{ x }}]{% endfor %}{% for x in [1,2] %}{% for y in [3,4] %}{{ loop.depth }}{{ x * y }} {% endfor %}{% endfor %}
{% set x = 1 %}{% for i in l %}{% set x = i %}{{ x }}{% endfor %}{{ x }}
{% set ns = namespace(a=1, b='x') %}{% for i in l %}{% set ns.a = ns.a + i %}{% endfor %}{{ ns.a }}{{ ns.b }}{{ ns.zz }}
{% set a, b = 1, 2 %}{{ a }}{{ b }}{% set c = (1, 2) %}{{ c }}{% set d2 = 1, %}{{ d2 }}
{% if n > 5 %}a{% elif n > 2 %}b{% else %}c{% endif %}{% if missing %}x{% endif %}{% if l and d %}y{% endif %}
{% set z %}block {{ s }}{% endset %}[{{ z }}]{% set z | upper | replace('O', '0') %}block {{ s }}{% endset %}[{{ z }}]
{% macro f(a, b='B', c=none) %}<{{ a }}{{ b }}{{ c }}>{% endmacro %}{{ f(1) }}{{ f(1, 2, 3) }}{{ f(c=5, a=4) }}{{ f() }}
{% macro g(x) %}{% if x > 0 %}{{ x }}{{ g(x - 1) }}{% endif %}{% endmacro %}{{ g(4) }} {% set q = 9 %}{% macro h() %}{{ q }}{{ n }}{% endmacro %}{{ h() }}
{% with a = 1, b = n %}{{ a }}{{ b }}{% endwith %}{{ a }} {% filter upper | trim %}  abc {{ s }} {% endfilter %}
{% raw %}{{ not }} {% evaluated %}{% endraw %} {# comment #}after {{- ' tight ' -}} end
{{ range(3) | list }} {{ range(2, 5) | list }} {{ range(5, 0, -2) | list }} {{ dict(a=1, b=2) }} {{ namespace(a=1).a }}
{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d %H:%M:%S %A %j') }}
{{ 'it\'s' }} {{ "a\tb\\n" }} {{ '\x41\u00e9\q' }} {{ 'a' 'b' }} {{ "{% not a tag %}" }} {{ '}}' }}
{{ {'a': {'b': [1, 2]}}['a']['b'][1] }} {{ {'a': 1} if false else 1 }}
{{ -n }} {{ +n }} {{ -n ** 2 }} {{ -3 | abs }} {{ not n == 3 }} {{ 2 * -3 }} {{ 1 - -1 }} {{ (1 + 2) * 3 }}
{{ 'a' ~ 'b' | upper }} {{ ('a' ~ 'b') | upper }} {{ 1 + 2 | string | length }} {{ l | length > 2 and s | length < 5 }}
{{ m.tool_calls[0].function.arguments | tojson }} {{ m.role == 'user' and m['content'] is string }} {{ m.get('name', 'none') }}
{{ [1, 'two', 3.0, none, true, {'k': (1,)}] }} {{ "mixed ' quote" }} {{ ["it's", 'say "x"', 'both \' "', 'new\nline', 'é\x00'] }}
{{ 10 is divisibleby 5 and 3 is odd }} {{ (s is string) and (n is not string) }} {{ missing is not defined or n }}
{{ 1.5 | string }} {{ true | string }} {{ none | string }} {{ l | string }} {{ 1_000 }} {{ 3 | default(4) }}
{% if not (n is defined and n == 4) %}ok{% endif %} {% if s is defined and s is string and s[0:5] == 'Hello' %}ok{% endif %}
{{ nested.text }} {{ nested.text | tojson }} {{ nested['text'] | length }} {{ nested.list | length }} {{ nested.list[-1] }}
{{ 'a=%s' | replace('%s', n | string) }} {{ ['x', 'y'] | map('replace', 'x', 'z') | list }} {{ words | map('first') | join }} {{ words | map('length') | sum }}
{{ d | tojson | length }} {{ (d | tojson).startswith('{') }} {{ s.split(', ')[1].lower() }} {{ s.split(', ') | last }} {{ ws.strip().split()[0] }}
{{ d == {'a': 'x', 'b': 1, 'c': none} }} {{ [1, [2]] == [1, [2]] }} {{ (1, 2) == [1, 2] }} {{ 'b' > 'a' }} {{ [1, 2] < [1, 3] }}
{% generation %}assistant {{ n }}{% endgeneration %} {% set x = namespace() %}{% set x.y = [1] + [2] %}{{ x.y }}
{%- set content -%}  spaced  {%- endset -%}[{{ content }}] {% set _ = none %}{{ _ }} {{ 'x' if _ is none }}
{{ l | map('int') | list }} {{ ['1', '2'] | map('int') | sum }} {{ [[1, 2], [3]] | map('length') | list }} {{ [[1, 2], [3]] | map('first') | list }} {{ [{'a': {'b': 5}}] | map(attribute='a.b') | list }}
{{ 'ABC' | lower | capitalize }} {{ "x" | upper ~ "y" }} {{ [s, u] | join(' / ') | length }} {{ 'one two' | title | replace(' ', '') }}
{{ ('a', 'b') | join('+') }} {{ ('a', 'b') is sequence }} {{ 'b' in ('a', 'b') }} {{ ('a', 'b') | first }} {{ ('x', 1) | tojson }}
{{ 0 is none }} {{ '' is none }} {{ [] is defined }} {{ {}.x is defined }} {{ d.a is defined and d.zz is not defined }}
"""

MULTILINE = [
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n  {%- if true -%}\n  b\n  {%- endif -%}\nc\n\n",
    "  {%+ if true +%}\n b\n  {%+ endif %}\n",
    "{# one #}\n  {# two #}\nx {# three -#}   \n y\n{#- four #}z",
    "{% for i in l %}\n  {{ i }}\n{% endfor %}\nend",
    "{% for i in l -%}\n  {{ i }},\n{%- endfor %}\n\n\nend\n\n",
    "x  \n\t{% set a = 1 %}\t\n{{ a }}\n\n  {{- a -}}  \n q",
    "{{ 1 }}\n{{ 2 }}\r\n{{ 3 }}\r{% if 1 %}\r\n4{% endif %}",
    "  {% raw %}\n  {{ x }}\n  {% endraw %}\nq  {%- raw -%}  a  {%- endraw -%}  b",
    "{% if 1 %} {% if 1 %}\n{% endif %} {% endif %}|",
    "{{ s\n  | upper\n  | replace('L',\n 'x') }}\n{% set x = [\n 1,\n 2,\n] %}\n{{ x }}",
    "\n\n{% if true %}\n\nA\n\n{% endif %}\n\n",
    "text {% if true %}\n inline{% endif %} more\n   text {% if true %}x{% endif %}\n",
    "{%- macro f(x) %}\n  <{{ x }}>\n{% endmacro -%}\n{{ f(1) }}{{ f(2) }}",
    "\u00a0\u2003{%- if 1 %}x{% endif -%}\u00a0\u2003y \u2003\n\u2003{% if 1 %}z{% endif %}",
]

ERRORS = [
    "{{ missing.x }}", "{{ missing() }}", "{{ 1 + 'a' }}", "{{ missing + 1 }}", "{{ 1 // 0 }}",
    "{{ raise_exception('no system role') }}", "{{ l.append(4) }}", "{{ d.update({}) }}",
    "{{ 'a' < 1 }}", "{{ n() }}", "{% for x in n %}{% endfor %}", "{{ missing | tojson }}",
    "{{ x", "{% if %}x{% endif %}", "{% if 1 %}", "{% endif %}", "{{ 1 | nofilter }}",
    "{{ 1 is notest }}", "{% for x in %}{% endfor %}", "{{ 'abc }}", "{# open", "{% raw %}",
    "{{ (1 }}", "{{ 1 2 }}", "{% set 1 = 2 %}", "{% unknown %}", "{{ a b }}", "{{ }}",
    "{% set a, b = 1, 2, 3 %}", "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{{ [1][1].x }}",
    "{{ nil + 1 }}", "{{ nil.x.y }}", "{{ 'x'.nope() }}", "{% break %}", "{{ d.a.b.c }}",
    "{{ missing < 1 }}", "{{ 5 | length }}", "{% set s.x = 1 %}",
]

CHATML = """{% for message in messages %}
{%- if loop.first and message['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are a helpful AI assistant.<|im_end|>\\n' }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
    {%- set rest = messages %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You can call these functions, answering with JSON only.\\n\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in rest %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("only one call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate user and assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}
                        {{- ", " }}
                    {%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}
                    {{- ", " }}
                {%- else %}
                    {{- "]" }}
                {%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {{- (tool_call.function|tojson)[:-1] }}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {{- "]" + eos_token if loop.last else ", " }}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- else %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + "}[/TOOL_RESULTS]" }}
    {%- endif %}
{%- endfor %}
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning is string %}
            {%- set reasoning = message.reasoning %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

CALL = {"id": "abc123456", "type": "function",
        "function": {"name": "weather", "arguments": {"city": "Zürich", "days": 2}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Weather \"now\"",
                                           "parameters": {"type": "object", "properties": {}}}}]
CONVERSATIONS = {
    "one": [{"role": "user", "content": "  Hello!\n"}],
    "system": [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "你好 👋"}],
    "turns": [{"role": "user", "content": "a"},
              {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb \n"},
              {"role": "user", "content": "c <|im_end|> {{ x }}"}],
    "tools": [{"role": "user", "content": "weather?"},
              {"role": "assistant", "content": "", "tool_calls": [CALL]},
              {"role": "tool", "content": "sunny"}],
    "answered": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    "bad": [{"role": "assistant", "content": "I begin"}],
}


def render(env, template, values):
    try:
        return {"out": env.from_string(template).render(**values)}
    except Exception as error:  # any error: what matters is that there is one
        return {"error": type(error).__name__}


def main():
    env = environment()
    snippets = [line for line in SNIPPETS.strip().split("\n")] + MULTILINE + ERRORS
    golden = {"values": VALUES,
              "snippets": [{"template": s, **render(env, s, VALUES)} for s in snippets],
              "templates": {"chatml": CHATML, "llama": LLAMA, "mistral": MISTRAL, "qwen": QWEN},
              "chats": []}
    for name, template in golden["templates"].items():
        for conversation, messages in CONVERSATIONS.items():
            for prompt in (True, False):
                for tools in (None, TOOLS):
                    values = {"messages": messages, "add_generation_prompt": prompt, "tools": tools,
                              "documents": None, "bos_token": "<s>", "eos_token": "</s>"}
                    if prompt:
                        values["enable_thinking"] = False
                    golden["chats"].append({
                        "template": name, "conversation": conversation, "prompt": prompt,
                        "with_tools": tools is not None, **render(env, template, values)})
    golden["conversations"] = CONVERSATIONS
    golden["tools"] = TOOLS
    with open(os.path.join(HERE, "templates.json"), "w", encoding="utf-8") as f:
        json.dump(golden, f, ensure_ascii=True, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
