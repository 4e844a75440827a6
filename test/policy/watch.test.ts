import { renameSync, rmSync, symlinkSync, utimesSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import type { Issue } from '../../src/config/issue.ts';
import { ConfigError } from '../../src/config/issue.ts';
import type { PolicyRevision } from '../../src/domain/policy.ts';
import { watchPolicy } from '../../src/policy/watch-policy.ts';
import { temporaryFolder } from '../config/support.ts';
import { agentYaml, fill, input, ruleYaml, toolYaml } from './support.ts';

const other = agentYaml.replace('name: analyst', 'name: other');

async function watching(files: Record<string, string>, pollMs = 10) {
  const folder = temporaryFolder();
  fill(folder, files);
  const revisions: PolicyRevision[] = [];
  const refused: (readonly Issue[])[] = [];
  const source = await watchPolicy({
    directory: folder,
    pollMs,
    onRevision: (revision) => revisions.push(revision),
    onError: (issues) => refused.push(issues),
  });
  onTestFinished(() => source.close());
  return { folder, source, revisions, refused };
}

const agents = (source: { current(): PolicyRevision }) => [...source.current().agents.keys()];

describe('a watched policy directory', () => {
  test('must be right at first', async () => {
    const folder = temporaryFolder();
    fill(folder, { 'a.yaml': agentYaml.replace('owner', 'onwer') });
    await expect(watchPolicy({ directory: folder })).rejects.toThrow(ConfigError);
    await expect(watchPolicy({ directory: path.join(folder, 'none') })).rejects.toThrow(/does not exist/);
  });

  test('is followed: a file changed, added, removed', async () => {
    const { folder, source, revisions } = await watching({ 'a.yaml': agentYaml });
    expect(agents(source)).toEqual(['analyst']);
    writeFileSync(path.join(folder, 'a.yaml'), other);
    await vi.waitFor(() => expect(agents(source)).toEqual(['other']), 10_000);
    fill(folder, { 'deep/b.yaml': agentYaml });
    await vi.waitFor(() => expect(agents(source)).toEqual(['other', 'analyst']), 10_000);
    rmSync(path.join(folder, 'a.yaml'));
    await vi.waitFor(() => expect(agents(source)).toEqual(['analyst']), 10_000);
    expect(revisions).toHaveLength(3);
    expect(revisions.at(-1)).toBe(source.current());
  });

  test('is followed through a link that is turned to another version, as git-sync and Kubernetes do', async () => {
    const folder = temporaryFolder();
    fill(folder, { 'v1/a.yaml': agentYaml, 'v2/a.yaml': other });
    symlinkSync('v1', path.join(folder, 'current'));
    const source = await watchPolicy({ directory: path.join(folder, 'current'), pollMs: 10 });
    onTestFinished(() => source.close());
    symlinkSync('v2', path.join(folder, 'next'));
    renameSync(path.join(folder, 'next'), path.join(folder, 'current'));
    await vi.waitFor(() => expect(agents(source)).toEqual(['other']), 10_000);
  });

  test('keeps its running revision when an edit is bad, says why once, and takes the next good one (fault 20)', async () => {
    const files = { 'a.yaml': agentYaml, 't.yaml': toolYaml, 'p.yaml': ruleYaml('') };
    const { folder, source, revisions, refused } = await watching(files);
    const running = source.current();
    const asked = input({ agent: 'analyst', tool: 'warehouse' });
    expect(running.decide(asked).effect).toBe('allow');

    writeFileSync(path.join(folder, 'p.yaml'), ruleYaml('      when: task.agee > 5'));
    await vi.waitFor(() => expect(source.lastError()).toBeDefined(), 10_000);
    expect(source.lastError()).toBe(
      `${folder}/p.yaml:11:18: spec.rules[0].when: task has no field "agee"; did you mean "age"?`,
    );
    await source.reload();
    expect(source.current()).toBe(running);
    expect(source.current().decide(asked).effect).toBe('allow');
    expect(revisions).toEqual([]);
    // Once for the edit, once for the reload that was asked for; not once for each look.
    expect(refused).toHaveLength(2);

    writeFileSync(path.join(folder, 'p.yaml'), ruleYaml('      when: task.age > 500'));
    await vi.waitFor(() => expect(source.lastError()).toBeUndefined(), 10_000);
    expect(source.current()).not.toBe(running);
    expect(source.current().decide(asked).effect).toBe('deny');
  });

  test('keeps its running revision when it is emptied or gone', async () => {
    const { folder, source } = await watching({ 'a.yaml': agentYaml });
    rmSync(path.join(folder, 'a.yaml'));
    await vi.waitFor(() => expect(source.lastError()).toMatch(/holds no policy documents/), 10_000);
    rmSync(folder, { recursive: true });
    await vi.waitFor(() => expect(source.lastError()).toMatch(/does not exist/), 10_000);
    expect(agents(source)).toEqual(['analyst']);
  });

  test('goes back to having no error when a bad edit is undone', async () => {
    const { folder, source, revisions } = await watching({ 'a.yaml': agentYaml });
    writeFileSync(path.join(folder, 'a.yaml'), 'a: b: c');
    await vi.waitFor(() => expect(source.lastError()).toBeDefined(), 10_000);
    writeFileSync(path.join(folder, 'a.yaml'), agentYaml);
    await vi.waitFor(() => expect(source.lastError()).toBeUndefined(), 10_000);
    expect(revisions).toEqual([]);
  });

  test('is the same revision when files are only touched or written again', async () => {
    const { folder, source, revisions } = await watching({ 'a.yaml': agentYaml });
    const running = source.current();
    utimesSync(path.join(folder, 'a.yaml'), new Date(1), new Date(1));
    await source.reload();
    expect(source.current()).toBe(running);
    expect(revisions).toEqual([]);
  });

  test('is loaded at once when asked, without waiting for a look', async () => {
    const { folder, source, revisions } = await watching({ 'a.yaml': agentYaml }, 3_600_000);
    writeFileSync(path.join(folder, 'a.yaml'), other);
    await source.reload();
    expect(agents(source)).toEqual(['other']);
    expect(revisions).toEqual([source.current()]);
  });

  test('is not followed any more after closing', async () => {
    const { folder, source, revisions } = await watching({ 'a.yaml': agentYaml });
    source.close();
    writeFileSync(path.join(folder, 'a.yaml'), other);
    await source.reload();
    expect(agents(source)).toEqual(['analyst']);
    expect(revisions).toEqual([]);
  });

  test('shows the first twenty mistakes and how many there are', async () => {
    const { folder, source } = await watching({ 'a.yaml': agentYaml });
    for (let n = 0; n < 25; n++) writeFileSync(path.join(folder, `x${n}.yaml`), 'kind: Nothing');
    await source.reload();
    expect(source.lastError()!.split('\n')).toHaveLength(21);
    expect(source.lastError()).toMatch(/\n… and 5 more$/);
  });
});
