import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** What needs the Vault server comes last: in a fresh checkout it is being built while the others run. */
class VaultLast extends BaseSequencer {
  override async sort(files: TestSpecification[]) {
    const sorted = await super.sort(files);
    const needsVault = ({ moduleId }: TestSpecification) => /[/\\]test[/\\]vault[/\\]/.test(moduleId);
    return [...sorted.filter((file) => !needsVault(file)), ...sorted.filter(needsVault)];
  }
}

export default defineConfig({
  test: {
    include: ['test/**/*.test.ts'],
    globalSetup: ['test/support/global-setup.ts'],
    testTimeout: 60_000,
    hookTimeout: 60_000,
    maxWorkers: 2,
    sequence: { sequencer: VaultLast },
    passWithNoTests: false,
  },
});
