import { spawnSync } from 'node:child_process';
import type { Command } from 'commander';
import { describe, expect, test } from 'vitest';
import { exitCodes } from '../../src/cli/exit-codes.ts';
import { buildProgram } from '../../src/cli/program.ts';
import { runCli } from './run-cli.ts';

function walk(command: Command, path: string[] = []): { path: string[]; command: Command }[] {
  return [{ path, command }, ...command.commands.flatMap((child) => walk(child, [...path, child.name()]))];
}

const nodes = walk(buildProgram());
const leaves = nodes.filter(({ command }) => command.commands.length === 0);

/** The words of a `$ leasehold …` line up to a pipe or a redirection, as far as tests need them. */
function commandLines(help: string): string[][] {
  return help
    .split('\n')
    .filter((line) => line.startsWith('  $ '))
    .flatMap((line) => /leasehold( [^|&>)"]*("[^"]*"[^|&>)"]*)*)?/.exec(line)?.[0] ?? [])
    .map((line) => line.match(/"[^"]*"|\S+/g)!.slice(1));
}

describe('every command', () => {
  test.each(leaves.map(({ path }) => [path.join(' ')]))(
    '%s has help with examples that name real commands and options',
    async (name) => {
      const { code, stdout, stderr } = await runCli([...name.split(' '), '--help']);
      expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
      const lines = commandLines(stdout);
      expect(lines.length).toBeGreaterThan(0);
      expect(lines.some((words) => words.join(' ').startsWith(name))).toBe(true);
      for (const words of lines) {
        const { command } = nodes.findLast(({ path }) => path.every((word, index) => words[index] === word))!;
        const known = command.options.flatMap((option) => [option.short, option.long]);
        for (const word of words.filter((text) => text.startsWith('-'))) expect(known).toContain(word);
      }
    },
  );

  test('that calls a broker can name server, token file, authority and time-out, and print JSON', () => {
    const remote = leaves.filter(({ command }) => command.options.some((option) => option.long === '--server'));
    expect(remote.length).toBeGreaterThanOrEqual(14);
    for (const { command } of remote) {
      const flags = command.options.map((option) => option.long);
      expect(flags).toEqual(expect.arrayContaining(['--token-file', '--ca-file', '--timeout', '--json']));
    }
  });

  test('has no option that takes a secret as its value: arguments are readable by every user of the machine', () => {
    const names = nodes.flatMap(({ command }) => command.options.map((option) => option.long));
    expect(names.filter((name) => /^--((access-)?token|password|secret|key|database-url)$/.test(name!))).toEqual([]);
  });
});

test('help exit-codes lists every code with its meaning', async () => {
  const { code, stdout } = await runCli(['help', 'exit-codes']);
  expect(code).toBe(0);
  for (const entry of Object.values(exitCodes)) expect(stdout).toContain(`${entry.code}  ${entry.meaning}`);
  const numbers = Object.values(exitCodes).map((entry) => entry.code);
  expect(new Set(numbers).size).toBe(numbers.length);
});

test('help of a command is the same as --help after it', async () => {
  const [asked, given] = await Promise.all([runCli(['help', 'task', 'open']), runCli(['task', 'open', '--help'])]);
  expect(asked).toEqual(given);
});

test('a mistyped command exits with 2 and suggests the right one', async () => {
  const { code, stderr } = await runCli(['tsk', 'list']);
  expect(code).toBe(2);
  expect(stderr).toMatch(/^leasehold: .*Did you mean task\?.*\n$/);
});

test('version prints the release of the package', async () => {
  const { stdout } = await runCli(['version', '--json']);
  expect(JSON.parse(stdout)).toEqual({ version: expect.stringMatching(/^\d+\.\d+\.\d+/), node: process.versions.node });
});

describe('completion', () => {
  test.each(['bash', 'zsh', 'fish'])('%s knows every command and every long option', async (shell) => {
    const { code, stdout } = await runCli(['completion', shell]);
    expect(code).toBe(0);
    for (const { path, command } of nodes) {
      if (path.length > 0) expect(stdout).toContain(path.at(-1));
      for (const option of command.options) {
        expect(stdout).toContain(shell === 'fish' ? `-l ${option.long!.slice(2)}` : option.long!);
      }
    }
  });

  function complete(...words: string[]): string[] {
    const script = `source <(${process.execPath} src/main.ts completion bash)
COMP_WORDS=(leasehold "$@"); COMP_CWORD=$#
_leasehold; printf '%s\\n' "\${COMPREPLY[@]}"`;
    const result = spawnSync('bash', ['-c', script, 'bash', ...words], { encoding: 'utf8', timeout: 20_000 });
    expect(result.stderr).toBe('');
    return result.stdout.trim().split('\n');
  }

  test('in a real bash offers subcommands, options and choices where they belong', () => {
    expect(complete('ta')).toEqual(['task']);
    expect(complete('task', '')).toEqual(expect.arrayContaining(['open', 'get', 'list', 'close', 'watch', 'extend']));
    expect(complete('task', 'open', '--ag')).toEqual(['--agent', '--agent-workload']);
    expect(complete('credential', 'issue', '--format', '')).toEqual(['env', 'json', 'pgpass', 'token']);
    expect(complete('completion', '--h')).toEqual(['--help']);
  });
});
